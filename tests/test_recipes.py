"""Every packaged recipe runs, in a tiny form, by the very commands of its page.

The files that a recipe names are written by the test: weights of the named architecture that have
learned nothing, and a few images of noise. Steps, counts and sizes are cut down in a parsed copy;
what is left untouched are the stages, the targets, the precisions and the devices.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
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
    if plain["training"] is not None:
        plain["training"].update(steps=2, batch=8, evaluations=1)
    if plain["evaluation"] is not None:
        plain["evaluation"]["limit"] = 64
    plain["calibration"]["count"] = 16
    plain["parity"].update(images=64, golden=4)
    plain["latency"]["mode"] = "demo"
    return plain


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every recipe that is loaded come out tiny, and everything else that takes its time."""
    load = Recipe.load

    def load_tiny(path: Path) -> Recipe:
        return Recipe.parse(yaml.safe_dump(shrunk(load(path).to_dict())), name=str(path))

    monkeypatch.setattr(Recipe, "load", load_tiny)
    monkeypatch.setitem(latency.MODES, "demo", TINY_MODE)  # type: ignore[arg-type]
    monkeypatch.setattr(demo, "TEACHER_STEPS", 2)


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
        write_images(folder / source["path"], 24)
        made.add(source["path"])
    return made


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


def check_documented(summary: dict[str, Any]) -> None:
    """Hold the keys of a summary against docs/run-directory.md."""
    page = sections((ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (`.+?) \|", page["summary.json"], flags=re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    dynamic = ("wall_s.", "artifacts[].gates[].", "student.gates[].")
    found = {path for path in paths_of(summary) if not path.startswith(dynamic)}

    assert sorted(found - told) == [], "docs/run-directory.md does not tell of these keys"
    assert sorted(told - found - {"wall_s", "artifacts[].gates", "student.gates"}) == []


@pytest.mark.parametrize("name", RECIPES)
def test_page_has_the_three_sections(name: str) -> None:
    assert list(read_page(name)) == SECTIONS


def test_every_page_is_that_of_a_recipe() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("tiny")
def test_recipe_runs_by_the_commands_of_its_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    inputs = write_inputs(name, tmp_path)
    page = read_page(name)

    commands = fenced(page["Run it"], "console")
    codes = [main(shlex.split(line.removeprefix("$ hydistill "))) for line in commands]

    said = capfd.readouterr().err
    assert set(codes[:-1]) <= {0}, said
    assert codes[-1] in (0, 1), said  # what has learned nothing may well fail a gate
    promised = fenced(page["What you should see"], "text")
    left = [file for file in files_of(tmp_path) if Path(file).parts[0] not in inputs]
    assert [line for line in promised if not any(fits(file, line) for file in left)] == []
    assert [file for file in left if not any(fits(file, line) for line in promised)] == []
    check_summary(tmp_path, promised)


def check_summary(folder: Path, promised: list[str]) -> None:
    """Hold what the run says of itself against what lies there."""
    run = folder / next(Path(line).parent for line in promised if line.endswith("summary.json"))
    summary = read_json(run / "summary.json")
    recipe = Recipe.parse((run / "recipe.yaml").read_text(encoding="utf-8"))
    asked = [(t.target, p) for t in recipe.targets for p in t.precisions]
    assert [(row["target"], row["precision"]) for row in summary["artifacts"]] == asked
    assert all((run / row["file"]).is_file() for row in summary["artifacts"])
    assert len(list((run / "bundle").glob("*.hydistill"))) == len(asked)
    if summary["name"] == "digits":  # has everything that a summary can have
        check_documented(summary)
