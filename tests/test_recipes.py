"""Every packaged recipe runs, in a tiny form, by the very commands of its page.

The files that a recipe names are written by the test: weights of the named architecture that have
learned nothing, and a few images of noise. Steps, counts and sizes are cut down in a parsed copy;
what is left untouched are the stages, the targets, the precisions and the devices.
"""

from __future__ import annotations

import functools
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import pytest
import yaml

from hydistill_edge import demo
from hydistill_edge.cli import main
from hydistill_edge.images.resize import resize
from hydistill_edge.recipe import Recipe
from hydistill_edge.recipes import list_recipes, read_recipe
from hydistill_edge.run_directory import read_json
from hydistill_edge.targets import latency

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "recipes"
SECTIONS = ["Introduction", "Run it", "What you should see"]
RECIPES = sorted(list_recipes())

SIDE_PX = 32
"""Where a recipe says 64: a quarter of the work."""

TINY_MODE = latency.Mode("demo", 0.02, 1, 64, 0.02, (0.001, 0.01), advisory=True)
"""In place of 3 s per artifact."""


def sections(page: str) -> dict[str, str]:
    """Return the text under every heading of the second level."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def fenced(text: str, language: str) -> list[str]:
    """Return the lines of all code blocks of one language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(blocks).splitlines()


def read_page(name: str) -> dict[str, str]:
    return sections((PAGES / f"{name}.md").read_text(encoding="utf-8"))


def shrunk(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe with as little work as its stages can be done with."""
    for network in (plain["teacher"], plain["student"]):
        if network is not None and network["input"] is not None:
            network["input"].update(
                height=min(network["input"]["height"], SIDE_PX),
                width=min(network["input"]["width"], SIDE_PX),
            )
    plain["images"]["synthetic"]["count"] = 96
    plain["images"]["synthetic"]["inversion"].update(iterations=1, batch=48)
    if plain["images"]["synthetic"]["procedural"]["count"]:
        plain["images"]["synthetic"]["procedural"].update(count=24, draws=2)
    plain["images"]["synthetic"]["gan"].update(iterations=2, batch=8, width=8, records=1)
    if plain["images"]["pilot"] is not None:
        plain["images"]["pilot"].update(count=20, threshold=0.0)
    if plain["training"] is not None:
        plain["training"].update(batch=8, evaluations=1)
        short = {"steps": 2, "steps_per_epoch": 1, "fold_steps": 1}
        plain["training"].update({k: v for k, v in short.items() if k in plain["training"]})
    if plain["method"] == "kd3":
        plain["training"].update(epochs=2)
    if plain["evaluation"] is not None:
        plain["evaluation"]["limit"] = 64
    plain["calibration"]["count"] = 16
    plain["parity"].update(images=64, golden=4)
    plain["latency"]["mode"] = "demo"
    return plain


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    """Let every recipe that is loaded come out tiny, and everything else that takes its time."""
    load = Recipe.load

    def load_tiny(path: Path) -> Recipe:
        return Recipe.parse(yaml.safe_dump(shrunk(load(path).to_dict())), name=str(path))

    patch.setattr(Recipe, "load", load_tiny)
    patch.setitem(latency.MODES, "demo", TINY_MODE)  # type: ignore[arg-type]
    patch.setattr(demo, "TEACHER_STEPS", 2)


def write_weights(path: Path, section: dict[str, Any], classes: int) -> None:
    """Write weights that fit a teacher or student section: an ONNX file, or a state dict."""
    if path.suffix == ".onnx":
        write_onnx(path, classes=classes, side=SIDE_PX)
        return
    from safetensors.torch import save_file

    save_file(random_network(section["architecture"], classes).state_dict(), path)


def random_network(architecture: str, classes: int) -> Any:
    """Return a torchvision network whose batch norms have the statistics of noise.

    With those of a fresh network the signal of a deep one fades until all logits are equal.
    """
    import torch
    from torchvision.models import get_model

    library, _, name = architecture.partition(":")
    assert library == "torchvision", "make networks of other libraries here too"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = get_model(name, weights=None, num_classes=classes)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.randn(32, 3, SIDE_PX, SIDE_PX))
    return network


def write_onnx(path: Path, *, classes: int, side: int) -> None:
    """Write a convolution, a ReLU and a linear layer, as they leave an exporter."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    chance = np.random.default_rng(0)
    values = {
        "conv.weight": chance.normal(size=(8, 3, 3, 3)),
        "fc.weight": chance.normal(size=(classes, 8)),
        "fc.bias": np.zeros(classes),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "conv.weight"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "fc.weight", "fc.bias"], ["logits"], transB=1),
        ],
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save(model, path)


def write_images(path: Path, count: int) -> None:
    """Write smooth noise as a folder of PNG files."""
    from PIL import Image

    path.mkdir()
    chance = np.random.default_rng(0)
    for index in range(count):
        coarse = chance.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(resize(coarse, (40, 48))).save(path / f"{index:03d}.png")


def write_inputs(name: str, folder: Path) -> set[str]:
    """Write the files that a recipe names; return their names."""
    if name == "demo":
        return set()  # hydistill demo writes them itself
    recipe = yaml.safe_load(read_recipe(name))
    made = set()
    for role in ("teacher", "student"):
        section = recipe.get(role, {})
        if "weights" in section:
            write_weights(folder / section["weights"], section, len(section["classes"]))
            made.add(section["weights"])
    for source in recipe["images"].get("real", []):
        if source["kind"] == "shards":
            write_shards(folder / source["path"], 24)
        else:
            write_images(folder / source["path"], 24)
        made.add(source["path"])
    return made


def write_shards(path: Path, count: int) -> None:
    """Write the same noise as one tar shard, each image with its address beside it."""
    write_images(path, count)
    with tarfile.open(path / "pool-0.tar", "w") as tar:
        for image in sorted(path.glob("*.png")):
            note = image.with_suffix(".json")
            note.write_text(json.dumps({"url": f"https://example.org/{image.name}"}))
            for file in (image, note):
                tar.add(file, file.name)
                file.unlink()


def fits(file: str, line: str) -> bool:
    """Say whether a file is what a line of the page promises; a star stays within one name."""
    return re.fullmatch(re.escape(line).replace(r"\*", "[^/]*"), file) is not None


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def paths_of(value: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of a JSON value that hold no further keys: `artifacts[].latency.p50_ms`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_of(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from paths_of(inner, f"{path}[]")
    else:
        yield path


@pytest.mark.parametrize("name", RECIPES)
def test_page_has_the_three_sections(name: str) -> None:
    assert list(read_page(name)) == SECTIONS


def test_every_page_is_that_of_a_recipe() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md")) == RECIPES


COPY = "widgets"  # the name that the pages' Python has for a run directory


@dataclass(frozen=True)
class Ran:
    """What the commands of a recipe's page left behind."""

    folder: Path
    codes: list[int]
    said: str
    left: list[str]  # files but those that were there before

    @property
    def run(self) -> Path:
        """The run directory."""
        found = (path.parent for path in self.folder.rglob("summary.json"))
        return next(path for path in found if path.name != COPY)


def run_page(name: str, folder: Path) -> Ran:
    """Type the commands of a recipe's page in a folder that has the files that it names."""
    inputs = write_inputs(name, folder)
    commands = fenced(read_page(name)["Run it"], "console")
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stderr(io.StringIO()) as said,
        redirect_stdout(io.StringIO()),
    ):
        make_tiny(patch)
        patch.chdir(folder)
        codes = [main(shlex.split(line.removeprefix("$ hydistill "))) for line in commands]
    left = [file for file in files_of(folder) if Path(file).parts[0] not in inputs]
    return Ran(folder, codes, said.getvalue(), left)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """Return a function that runs a recipe's page, once for all tests."""

    @functools.cache
    def run(name: str) -> Ran:
        return run_page(name, tmp_path_factory.mktemp(name))

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_by_the_commands_of_its_page(name: str, ran: Callable[[str], Ran]) -> None:
    found = ran(name)

    assert set(found.codes[:-1]) <= {0}, found.said
    assert found.codes[-1] in (0, 1), found.said  # what has learned nothing may fail a gate


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_leaves_the_files_of_its_page_and_no_others(
    name: str, ran: Callable[[str], Ran]
) -> None:
    left = ran(name).left
    promised = fenced(read_page(name)["What you should see"], "text")

    assert [line for line in promised if not any(fits(file, line) for file in left)] == []
    assert [file for file in left if not any(fits(file, line) for line in promised)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_summary_has_every_artifact_that_the_recipe_asks_for(
    name: str, ran: Callable[[str], Ran]
) -> None:
    run = ran(name).run
    summary = read_json(run / "summary.json")
    recipe = Recipe.parse((run / "recipe.yaml").read_text(encoding="utf-8"))

    asked = [(t.target, p) for t in recipe.targets for p in t.precisions]
    assert [(row["target"], row["precision"]) for row in summary["artifacts"]] == asked
    assert all((run / row["file"]).is_file() for row in summary["artifacts"])
    assert len(list((run / "bundle").glob("*.hydistill"))) == len(asked)


def test_keys_of_the_summary_are_those_of_its_page(ran: Callable[[str], Ran]) -> None:
    summary = read_json(ran("demo").run / "summary.json")  # the one with an evaluation
    page = sections((ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8"))

    rows = re.findall(r"^\| (`.+?) \|", page["summary.json"], flags=re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    inside = ("wall_s.", "peak_memory_mib.", "artifacts[].gates[].", "student.gates[].")
    found = {path for path in paths_of(summary) if not path.startswith(inside)}

    assert sorted(found - told) == []
    inner = {"wall_s", "peak_memory_mib", "artifacts[].gates", "student.gates", "overlap"}
    assert sorted(told - found - inner) == []


@pytest.mark.parametrize("page", ["README.md", "docs/bundle.md"])
def test_python_of_the_page_runs(
    page: str,
    ran: Callable[[str], Ran],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = ran("few_real_images")
    make_tiny(monkeypatch)
    monkeypatch.chdir(found.folder)
    monkeypatch.setenv("HYDISTILL_CACHE", str(found.folder / "cache"))
    copytree(found.run, f"runs/{COPY}", dirs_exist_ok=True)
    copyfile(next(found.run.glob("bundle/*onnxruntime*")), "widgets.hydistill")
    copyfile("pilot/000.png", "photo.png")

    for block in re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        exec(compile(block, page, "exec"), {})

    assert capsys.readouterr().out.split()[-3] in ("scratch", "dent", "stain", "good")


def test_recipe_list_names_every_packaged_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list", "--json"]) == 0

    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == RECIPES
    assert all(entry["about"].endswith(".") for entry in listed)


def test_recipe_copy_puts_the_file_into_a_folder(tmp_path: Path) -> None:
    assert main(["recipe", "copy", "demo", "--out", str(tmp_path)]) == 0

    assert (tmp_path / "demo.yaml").read_text(encoding="utf-8") == read_recipe("demo")


def test_recipe_copy_keeps_a_file_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "recipe.yaml"
    mine.write_text("mine")

    assert main(["recipe", "copy", "demo", "--out", str(mine)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert main(["recipe", "copy", "demo", "--out", str(mine), "--force"]) == 0


def test_recipe_copy_names_the_known_ones_when_the_name_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipe", "copy", "teacher-only"]) == 2

    said = " ".join(capsys.readouterr().err.split())
    assert 'did you mean "teacher_only"?' in said
    assert ", ".join(RECIPES) in said
