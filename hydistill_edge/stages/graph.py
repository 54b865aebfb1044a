"""Stage graph: export the student once for every batch size and opset that a device asks for."""

from __future__ import annotations

from pathlib import Path

from hydistill_edge.run_directory import clear
from hydistill_edge.stages.work import Work


def run(work: Work) -> None:
    """Write graph/student-batch<N>-opset<M>.onnx."""
    wanted = {entry.graph: entry for entry in work.planned}
    parts = sorted(wanted)

    def make(folder: Path) -> None:
        from hydistill_edge.images.resize import RESIZE_RULE
        from hydistill_edge.targets.graph import export_student

        clear(folder)
        for done, (name, planned) in enumerate(sorted(wanted.items())):
            work.report("graph", done, len(wanted), {})
            export_student(
                work.student,
                folder / name,
                batch=planned.profile.batch,
                opset=planned.opset,
                resize=RESIZE_RULE,
            )

    work.run.folder_stage("graph", work.inputs(parts, after=("student",)), "graph", make)
    work.report("graph", len(wanted), len(wanted), {})
