"""A build that was killed, that ran out of space, or whose inputs changed, goes on where it was."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

ARTIFACT = "onnxruntime-x86-avx2-int8"
STAGES = {  # stage -> what it leaves, relative to the run directory
    "teacher": "teacher.json",
    "images": "transfer",
    "student": "student",
    "graph": "graph",
    "calibration": "calibration",
    "targets": f"targets/{ARTIFACT}",
    "parity": f"targets/{ARTIFACT}/parity.json",
    "latency": f"targets/{ARTIFACT}/latency.json",
    "evaluation": "evaluation.json",
    "bundle": "bundle",
    "report": "report.html",
}
WEIGHTS = "student/student.safetensors"

Contents = Callable[[Path], dict[str, str]]

pytestmark = pytest.mark.usefixtures("quick")


def undo(run: Path, stage: str) -> None:
    """Make a finished run look as if this stage had not run yet."""
    for record in (run / "stages").glob(f"{stage}*.json"):
        record.unlink()
    left = run / STAGES[stage]
    if left.is_dir():
        shutil.rmtree(left)
    else:
        left.unlink()


def kept(run: Path, stage: str, contents: Contents) -> dict[str, str]:
    """Return the digests of everything that the stages above have left."""
    places = list(STAGES.values())
    here = list(STAGES).index(stage)
    return {
        name: digest
        for name, digest in contents(run).items()
        if name.startswith(tuple(places[:here])) and not name.startswith(tuple(places[here:]))
    }


@contextmanager
def full_disk() -> Iterator[None]:
    """Refuse to make anything durable, as a full disk does."""

    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(os, "replace", full)
        patch.setattr(os, "rename", full)
        yield


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_loses_nothing_and_the_same_command_goes_on(
    stage: str,
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    hydistill: Any,
    refused: Any,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("build", tiny_inputs.recipe(tmp_path / "recipe.yaml"), "--out", run_copy)
    whole = contents(run_copy)
    undo(run_copy, stage)
    before = kept(run_copy, stage, contents)
    builds = importlib.import_module("hydistill_edge.build")
    run_stage = builds.STAGES[stage]

    def starved(work: Any) -> None:
        with full_disk():
            run_stage(work)

    with monkeypatch.context() as patch:
        patch.setattr(builds, "STAGES", {**builds.STAGES, stage: starved})
        refused(*command, code=3, says=("some space",))
    assert kept(run_copy, stage, contents) == before

    assert hydistill(*command, "--json").code == 0
    after = contents(run_copy)
    assert after[WEIGHTS] == whole[WEIGHTS]
    assert set(after) == set(whole)


def mount(folder: Path, size_kib: int, *options: str) -> bool:
    """Say whether a file system in memory could be mounted (or resized) here."""
    joined = ",".join([f"size={size_kib}k", *options])
    line = ["mount", "-t", "tmpfs", "-o", joined, "tmpfs", str(folder)]
    try:
        return subprocess.run(line, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB; skips where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, 16):
        pytest.skip("this process may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_build_ends_whole_on_a_disk_that_was_too_small_five_times(
    tiny_inputs: Any, small_disk: Path, tmp_path: Path, hydistill: Any, finished_build: Path
) -> None:
    command = ("build", tiny_inputs.recipe(tmp_path / "recipe.yaml"), "--out", small_disk / "run")
    codes = []
    for size_kib in (16, 48, 100, 180, 260, 100_000):
        assert mount(small_disk, size_kib, "remount")
        answer = hydistill(*command, "--json")
        codes.append(answer.code)
        if answer.code:
            assert "space" in answer.value["error"]["message"]
    assert codes == [3, 3, 3, 3, 3, 0]
    made = small_disk / "run" / WEIGHTS
    assert made.read_bytes() == (finished_build / WEIGHTS).read_bytes()


KILLED = """
import os, signal, sys

import onnxruntime, sklearn.metrics, torch, torchvision  # once, for all that follow
from hydistill_edge import Recipe, build

recipe = Recipe.load(sys.argv[1])
for out in sys.argv[2:]:
    def die(stage, done, total, metrics, last=os.path.basename(out)):
        if stage == last and (0 < done < total or stage != "student"):
            os.kill(os.getpid(), signal.SIGKILL)

    if os.fork() == 0:
        build(recipe, out=out, report=die)
        os._exit(0)
    print(os.WTERMSIG(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def killed_builds(
    tiny_inputs: Any, finished_build: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One run directory per stage, whose build was killed with -9 from the midst of that stage."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = tiny_inputs.recipe(folder / "recipe.yaml")
    for stage in STAGES:
        undo(shutil.copytree(finished_build, folder / stage), stage)
    line = [sys.executable, "-c", KILLED, str(recipe), *(str(folder / stage) for stage in STAGES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["9"] * len(STAGES), done.stderr
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_killed_build_goes_on_and_ends_like_one_that_was_not(
    stage: str,
    killed_builds: Path,
    finished_build: Path,
    tmp_path: Path,
    hydistill: Any,
    contents: Contents,
) -> None:
    run = Path(shutil.copytree(killed_builds / stage, tmp_path / "run"))
    assert kept(run, stage, contents) == kept(finished_build, stage, contents)

    assert hydistill("build", killed_builds / "recipe.yaml", "--out", run, "--json").code == 0

    after, whole = contents(run), contents(finished_build)
    assert set(after) == set(whole)
    assert after[WEIGHTS] == whole[WEIGHTS]


def test_training_that_was_killed_has_left_its_checkpoint(killed_builds: Path) -> None:
    from hydistill_edge.training.checkpoint import read_checkpoint
    from hydistill_edge.training.loop import CHECKPOINT_FILE

    partial = next((killed_builds / "student").glob(".student.*.partial"))
    checkpoint = read_checkpoint(partial / "checkpoints" / CHECKPOINT_FILE)

    assert checkpoint is not None
    assert 0 < checkpoint.values["step"] < 6


DYING = """
import os, shutil, sys

import numpy, onnxruntime, onnxscript, sklearn.metrics, torch, torchvision  # once, for all
import torch._dynamo, torch.export, torch.onnx
from dataclasses import replace
from hydistill_edge import Recipe, build
from hydistill_edge.report import figures
from hydistill_edge.targets import latency

short = replace(latency.MODES["demo"], seconds=0.05, at_most=64, cap_s=0.05, warm_up_s=(0.01, 0.02))
latency.MODES = {**latency.MODES, "demo": short}
figures.draw = lambda *_: ""
recipe, folder, earlier = Recipe.load(sys.argv[1]), *sys.argv[2:4]
samples, seed = int(sys.argv[4]), int(sys.argv[5])


def built(name, nth=0):
    # A child builds, and dies right before its nth move or removal; how many it made is kept.
    out = os.path.join(folder, name)
    if earlier and not os.path.exists(out):
        shutil.copytree(earlier, out)
    if (child := os.fork()) == 0:
        made = 0

        def counted(call):
            def step(*arguments, **options):
                nonlocal made
                made += 1
                if made == nth:
                    os._exit(9)
                return call(*arguments, **options)
            return step

        for module, verb in ((os, "rename"), (os, "replace"), (shutil, "rmtree")):
            setattr(module, verb, counted(getattr(module, verb)))
        build(recipe, out=out)
        with open(f"{out}.made", "w") as file:
            file.write(str(made))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


assert built("whole") == 0
moments = int(open(os.path.join(folder, "whole.made")).read())
draw = numpy.random.default_rng(seed)
edges = numpy.linspace(0, moments, samples + 1).astype(int).tolist()
for low, high in zip(edges, edges[1:]):
    nth = int(draw.integers(low + 1, high + 1))  # one of each part of the build
    print(nth, built(str(nth), nth), built(str(nth)), flush=True)
"""

TIMED = ("latency.json", "history.json", "summary.json", "report.html", ".hydistill")
"""Files that hold wall times, and the bundles that carry them."""


def same_but_for_times(found: Mapping[str, str]) -> dict[str, str]:
    """Return names and digests, the digest left out where wall times are in the file."""
    timed = (*TIMED, *(name for name in found if name.startswith("stages/")))
    return {name: "" if name.endswith(timed) else digest for name, digest in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("over_an_earlier_build", [False, True], ids=["anew", "over-an-earlier"])
def test_build_killed_anywhere_goes_on_and_ends_like_one_that_was_not(
    over_an_earlier_build: bool,
    tiny_inputs: Any,
    finished_build: Path,
    tmp_path: Path,
    contents: Contents,
) -> None:
    """Three moments of some hundred; HYDISTILL_KILLS sets how many, HYDISTILL_SEED which."""
    samples, seed = os.environ.get("HYDISTILL_KILLS", "3"), os.environ.get("HYDISTILL_SEED", "0")
    recipe = tiny_inputs.recipe(
        tmp_path / "r.yaml",
        images={"synthetic": {"count": 60}},
        training={"steps": 2, "evaluations": 1},
        calibration={"ranges": "minmax"},
    )
    earlier = str(finished_build) if over_an_earlier_build else ""
    line = [sys.executable, "-c", DYING, str(recipe), str(tmp_path), earlier, samples, seed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)

    told = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(told) == int(samples)
    assert {tuple(codes) for _, *codes in told} == {("9", "0")}, done.stderr
    whole = same_but_for_times(contents(tmp_path / "whole"))
    for moment, *_ in told:
        assert same_but_for_times(contents(tmp_path / moment)) == whole, moment


def records(run: Path) -> dict[str, int]:
    """Return when each stage was recorded; a stage that is skipped keeps its moment."""
    return {path.stem: path.stat().st_mtime_ns for path in run.glob("stages/*.json")}


def ran(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Return the stages that ran between two looks at the records."""
    parts = {part for part in after if after[part] != before.get(part)}
    return {part.partition(".")[0] for part in parts}


AFTER_STUDENT = {
    *("student", "graph", "calibration", "targets"),
    *("parity", "latency", "evaluation", "bundle"),
}
AFTER_IMAGES = {"images", *AFTER_STUDENT}


@dataclass(frozen=True)
class Change:
    """A change of the recipe, and the stages that it concerns."""

    id: str
    sections: Mapping[str, Any]
    stages: set[str]


CHANGES = [
    Change("nothing", {}, set()),
    Change("version", {"bundle": {"version": "2.0.0"}}, {"bundle"}),
    Change("threads", {"latency": {"threads": 2}}, {"latency", "bundle"}),
    Change("gate", {"gates": {"int8_agreement_real": 0.01}}, {"parity", "bundle"}),
    Change(
        "calibration",
        {"calibration": {"count": 8}},
        {"calibration", "targets", "parity", "latency", "evaluation", "bundle"},
    ),
]
LONG_CHANGES = [
    Change("steps", {"training": {"steps": 7}}, AFTER_STUDENT),
    Change("images", {"images": {"synthetic": {"count": 60}}}, AFTER_IMAGES),
]


@pytest.mark.parametrize(
    "change",
    [*CHANGES, *(pytest.param(change, marks=pytest.mark.slow) for change in LONG_CHANGES)],
    ids=lambda change: change.id,
)
def test_changed_recipe_runs_the_stages_that_it_concerns_and_no_other(
    change: Change, tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", **change.sections)
    before = records(run_copy)

    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0

    assert ran(before, records(run_copy)) == change.stages


def test_every_stage_runs_again_when_the_teacher_file_has_changed(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(tiny_inputs.teacher, teacher)
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", teacher={"weights": str(teacher)})
    assert hydistill("build", recipe, "--out", run_copy, "--only", "teacher").code == 0
    before = records(run_copy)
    tensors = load_file(teacher)
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] + 1}, teacher)

    # Whether the other teacher's student passes its gates is not asked here.
    assert hydistill("build", recipe, "--out", run_copy, "--json").code in (0, 1)

    assert ran(before, records(run_copy)) == {"teacher", *AFTER_IMAGES}


def test_weights_beside_an_onnx_teacher_count_as_the_teacher(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    from hydistill_edge.models.onnx_file import external_files

    kernel = TensorProto(name="kernel", data_type=TensorProto.FLOAT, dims=(1,))
    kernel.data_location = TensorProto.EXTERNAL
    kernel.external_data.add(key="location", value="kernel.bin")
    graph = helper.make_graph([], "teacher", [], [], [kernel])
    (tmp_path / "teacher.onnx").write_bytes(helper.make_model(graph).SerializeToString())

    assert external_files(tmp_path / "teacher.onnx") == [tmp_path / "kernel.bin"]


def test_changed_device_profile_concerns_what_is_built_or_judged_by_it(
    tiny_inputs: Any, tmp_path: Path, run_copy: Path, hydistill: Any
) -> None:
    from hydistill_edge.targets.profiles import DEVICES

    path = tmp_path / "line3.yaml"
    text = (DEVICES / "x86-avx2.yaml").read_text()
    targets = [{"target": "onnxruntime", "device": str(path), "precisions": ["fp32"]}]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets)

    path.write_text(text)
    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0
    first = records(run_copy)
    path.write_text(f"{text}\nlatency: {{percentile: p90, limit_ms: 5000, scope: engine}}\n")
    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0

    assert ran(first, records(run_copy)) == {"latency", "bundle"}


ALTERED = ["transfer/shard-00000.safetensors", WEIGHTS, f"targets/{ARTIFACT}/model.onnx"]


@pytest.mark.parametrize("name", [*ALTERED, "evaluation.json", "stages/images.json"])
def test_altered_file_of_a_run_is_made_again(
    name: str,
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    hydistill: Any,
    contents: Contents,
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    whole = contents(run_copy)
    data = bytearray((run_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (run_copy / name).write_bytes(data)

    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0

    after = contents(run_copy)
    assert after.keys() == whole.keys()
    assert after[WEIGHTS] == whole[WEIGHTS]
    assert name.startswith("stages") or after[name] == whole[name]


def test_artifact_that_the_recipe_does_not_name_any_more_is_gone_from_run_and_report(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    targets = [{"target": "onnxruntime", "device": "x86-avx2", "precisions": ["fp32"]}]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets)

    assert hydistill("build", recipe, "--out", run_copy, "--json").code == 0

    assert [path.name for path in (run_copy / "targets").iterdir()] == ["onnxruntime-x86-avx2-fp32"]
    assert "int8" not in " ".join(records(run_copy))
    assert list(hydistill("verify", run_copy, "--json").value["artifacts"]) == [
        "onnxruntime-x86-avx2-fp32"
    ]


@pytest.mark.parametrize("stage", ["images", "student"])
def test_stage_that_comes_out_the_same_again_makes_no_other_stale(
    stage: str, tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    command = ("build", tiny_inputs.recipe(tmp_path / "recipe.yaml"), "--out", run_copy)
    before = records(run_copy)
    assert hydistill(*command, "--only", stage, "--fresh").code == 0

    assert hydistill(*command, "--json").value["artifacts"]

    assert ran(before, records(run_copy)) == {stage}


@pytest.mark.parametrize(
    ("only", "sections", "stale"),
    [
        ("graph", {"training": {"steps": 7}}, "student"),
        ("bundle", {"parity": {"images": 60}}, "calibration"),
        ("bundle", {"latency": {"threads": 2}}, "latency"),
        ("report", {"gates": {"int8_agreement_real": 0.01}}, "parity"),
    ],
)
def test_stage_alone_is_refused_when_a_stage_above_it_is_stale(
    only: str,
    sections: Mapping[str, Any],
    stale: str,
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    refused: Any,
    contents: Contents,
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", **sections)
    before = contents(run_copy)

    says = (f"stage {stale}", "stale", f"--only {stale}", "without --only")
    refused("build", recipe, "--out", run_copy, "--only", only, code=2, says=says)

    assert contents(run_copy) == before


@pytest.mark.parametrize("only", STAGES)
def test_stage_alone_runs_when_only_what_it_does_not_read_has_changed(
    only: str, tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", bundle={"version": "2.0.0"})
    before = records(run_copy)

    answer = hydistill("build", recipe, "--out", run_copy, "--only", only, "--json")

    assert "error" not in answer.value
    assert ran(before, records(run_copy)) == {only} & {"bundle"}


def test_refused_stage_alone_keeps_the_artifacts_of_the_earlier_recipe(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, refused: Any, contents: Contents
) -> None:
    targets = [{"target": "onnxruntime", "device": "x86-avx2", "precisions": ["fp32"]}]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets, evaluation=None)
    before = contents(run_copy)

    says = ("stage targets has not run",)
    refused("build", recipe, "--out", run_copy, "--only", "bundle", code=3, says=says)

    assert contents(run_copy) == before


def test_report_never_shows_an_evaluation_that_the_recipe_does_not_name_any_more(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", evaluation=None)

    summary = hydistill("build", recipe, "--out", run_copy, "--json").value

    assert summary["student"]["accuracy"] is None
    assert not (run_copy / "evaluation.json").exists()


def test_fresh_build_does_everything_again_and_a_refused_one_nothing(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, hydistill: Any, refused: Any
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    before = records(run_copy)
    assert hydistill("build", recipe, "--out", run_copy, "--fresh", "--json").code == 0
    after = records(run_copy)
    assert ran(before, after) == set(STAGES) - {"report"}  # always made anew, so it has no record

    (tmp_path / "noise.pt").write_bytes(np.random.default_rng(0).bytes(99))
    recipe = tiny_inputs.recipe(recipe, teacher={"weights": str(tmp_path / "noise.pt")})
    refused("build", recipe, "--out", run_copy, "--fresh", code=2)
    assert records(run_copy).items() >= {k: v for k, v in after.items() if k != "teacher"}.items()
