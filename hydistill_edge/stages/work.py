"""What the stages of one build share: the recipe, the run directory, and what was made so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydistill_edge import __version__
from hydistill_edge.errors import MissingFileError, TransferSetError
from hydistill_edge.recipe import REDUCED, Recipe
from hydistill_edge.run_directory import RunDirectory, digest_of
from hydistill_edge.targets.base import Precision, TargetName
from hydistill_edge.targets.profiles import DeviceProfile, load_profile

if TYPE_CHECKING:
    import torch

    from hydistill_edge.calibration.choose import Partition
    from hydistill_edge.images.transfer_set import TransferSet
    from hydistill_edge.models.student import Student
    from hydistill_edge.models.teacher import Teacher

Report = Callable[[str, int, int, Mapping[str, float]], None]
"""`report(stage, done, total, metrics)`: how a build tells how far it is."""


EXPORT_OPSET = 18
"""What torch's exporter writes without a conversion; every runtime in use reads it."""

LEAST_PARITY = 2
"""Images without which the ladder's comparisons say nothing."""

_TEXTS = ("title", "description", "sources")
"""Fields of a device profile that decide nothing."""


def quiet(_stage: str, _done: int, _total: int, _metrics: Mapping[str, float]) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Planned:
    """One artifact that the recipe asks for."""

    target: TargetName
    profile: DeviceProfile
    precision: Precision

    @property
    def key(self) -> str:
        """Name of the artifact's folder: target-device-precision."""
        return f"{self.target}-{self.profile.name}-{self.precision}"

    @property
    def build_facts(self) -> dict[str, Any]:
        """What the profile says that an artifact is built by: all but its limits and its texts."""
        facts = asdict(self.profile)
        return {key: facts[key] for key in facts if key not in ("latency", *_TEXTS)}

    @property
    def judged_facts(self) -> dict[str, Any]:
        """What the profile says that a measurement is judged by."""
        facts = asdict(self.profile)
        return {key: facts[key] for key in facts if key not in _TEXTS}

    @property
    def opset(self) -> int:
        """The graph's opset: the exporter's own, unless the device reads older ones only."""
        return min(EXPORT_OPSET, self.profile.max_opset)

    @property
    def graph(self) -> str:
        """File name of the graph that the artifact is made from."""
        return f"student-batch{self.profile.batch}-opset{self.opset}.onnx"


class Work:
    """One build at work. Teacher, student and transfer set are read once, when first asked for.

    Attributes:
        shared: the run directory that lends teacher and images, where several students share them.
    """

    def __init__(
        self, recipe: Recipe, run: RunDirectory, report: Report, *, shared: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.report = report
        self.shared = shared

    def path(self, *parts: str) -> Path:
        """Return a path inside the run directory."""
        return self.run.path.joinpath(*parts)

    def inputs(self, *parts: Any, after: tuple[str, ...] = ()) -> str:
        """Return the digest of what a stage is made from.

        A stage above that ran again and came out differently makes this one stale, even where its
        own inputs are the same: training may end by the clock.

        Args:
            parts: plain values: sections of the recipe, fingerprints of files.
            after: names of the stages whose results it reads; they must be finished.

        Raises:
            MissingFileError: one of them has not run.
        """
        above = []
        for stage in after:
            record = self.run.record(stage)
            if record is None:
                raise MissingFileError(
                    f"stage {stage.partition('.')[0]} has not run in {self.run.path}; run it "
                    "first, or build without --only"
                )
            above.append([record.inputs, record.result])
        return digest_of([__version__, parts, above])

    @cached_property
    def torch_device(self) -> torch.device:
        """The device that trains: a GPU where there is one."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher; with method none and no teacher, the user's own student in its place."""
        from hydistill_edge.models.pixels import InputSpec
        from hydistill_edge.models.teacher import Teacher

        section = self.recipe.teacher or self.recipe.student
        if section.weights is None or section.input is None:
            raise AssertionError("the recipe was validated: one of both has weights and input")
        loaded = Teacher.load(
            Path(section.weights),
            architecture=section.architecture,
            classes=self.recipe.class_names(),
            spec=InputSpec(**dict(section.input)),
            options=dict(section.options),
        )
        return loaded.to(self.torch_device)

    @cached_property
    def transfer(self) -> TransferSet:
        """The transfer set, read memory-mapped, after every shard was compared with its sha256."""
        from hydistill_edge.images.transfer_set import TransferSet

        transfer = TransferSet.open(self.path("transfer"))
        transfer.verify()
        return transfer

    @cached_property
    def student(self) -> Student:
        """The trained student, on the CPU."""
        from hydistill_edge.models.student import Student

        # A student of the user's own code: the recipe, not the folder, names the code that runs.
        section = self.recipe.student
        named = section.architecture
        if named in REDUCED and self.recipe.teacher is not None:
            named = self.recipe.teacher.architecture
        code = named if named is not None and ".py:" in named else None
        return Student.load(self.path("student"), architecture=code)

    @cached_property
    def partition(self) -> Partition:
        """Calibration, parity and golden images: three disjoint parts of the transfer set.

        Raises:
            TransferSetError: there are too few different images for that.
        """
        from hydistill_edge.calibration.choose import partition

        transfer = self.transfer
        found = partition(
            hashes=transfer.hashes,
            pseudo_labels=transfer.pseudo_labels,
            origins=transfer.origins,
            may_ship=transfer.may_ship,
            confidences=transfer.confidences,
            calibration=self.recipe.calibration.count,
            parity=self.recipe.parity.images,
            golden=self.recipe.parity.golden,
            seed=self.recipe.seed,
        )
        if len(found.parity) < LEAST_PARITY:
            counts = {
                "calibration.count": self.recipe.calibration.count,
                "parity.images": self.recipe.parity.images,
                "parity.golden": self.recipe.parity.golden,
            }
            greediest = max(counts, key=lambda key: counts[key])
            asked = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise TransferSetError(
                f"the transfer set has {len(transfer)} different images, shared out in proportion "
                f"to {asked}, which leaves {len(found.parity)} to prove parity on; expected at "
                f"least {LEAST_PARITY}: lower {greediest}, give more real images, or a larger "
                "images.synthetic.count"
            )
        return found

    @cached_property
    def planned(self) -> list[Planned]:
        """Every artifact that the recipe asks for, in its order."""
        return plan(self.recipe)


def plan(recipe: Recipe) -> list[Planned]:
    """Return every artifact that a recipe asks for, in its order."""
    return [
        Planned(entry.target, profile, precision)
        for entry in recipe.targets
        for profile in (load_profile(entry.device),)
        for precision in entry.precisions
    ]


def fingerprint(path: Path) -> list[Any]:
    """Return names, sizes and times of a file, or of everything in a folder: cheap to compare."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [
        [str(file.relative_to(path)) if file != path else file.name, stat.st_size, stat.st_mtime_ns]
        for file in files
        for stat in (file.stat(),)
    ]
