"""The house rules that a reader would otherwise have to check by hand: who may import whom,
what stays light, how long a file may be, what the package exports.
"""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import hydistill_edge

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hydistill_edge"
FOLDERS = {
    PACKAGE: PACKAGE,
    "targets": f"{PACKAGE}.targets",
    "calibration": f"{PACKAGE}.calibration",
}

TRAINING_SIDE = ("synthesis", "images", "objectives", "training", "models")
HOST_SIDE = ("methods", *TRAINING_SIDE, "targets", "calibration", "tuning", "bundle", "report")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # Who may import whom inside the package. A row is a room (a folder or a module beside it), or
    # one file of a room, which then has its own row. Every room may import itself and `errors`.
    "errors": (),
    "atomic": (),
    "seeding": (),
    "naming": (),
    "objectives": (),
    "training": ("objectives", "atomic", "seeding"),
    "models": ("atomic", "seeding", "naming"),
    "images": ("models", "atomic"),
    "synthesis": ("images", "objectives", "training", "models", "seeding"),
    "methods": TRAINING_SIDE,
    "targets": (),
    "calibration": ("targets.base",),  # graphs run through callables that are handed in
    "bundle": (),
    "tuning": ("calibration", "targets", "methods"),
    "ship": ("bundle",),
    "report": ("atomic", "naming"),  # reads the run directory's JSON
    "device": (
        *(f"targets.{name}" for name in ("base", "parity", "latency", "gates", "profiles")),
        "targets.adapters",  # names the runner of each runtime, imported when it is opened
        "targets.*.runner",
        "targets.tensorrt.engine",
        *(f"bundle.{name}" for name in ("manifest", "pack", "golden", "reject")),
        "images.resize",  # one resize for host and device
    ),
    # The modules beside the rooms put them together. The first seven know no room but each other.
    "recipes": ("atomic",),  # YAML files, and how to copy one
    "yaml_lines": (),
    "run_directory": ("memory", "atomic"),
    "memory": (),
    "ed25519": (),
    "metrics": (),
    "recipe": ("yaml_lines", "models.zoo", "targets.base", "targets.profiles"),
    "family": ("recipe", "yaml_lines"),
    "stages": ("recipe", "run_directory", "atomic", "metrics", *HOST_SIDE),
    "build": ("recipe", "run_directory", "atomic", "stages", *HOST_SIDE),
    "family_summary": ("family", "build", "recipe", "run_directory", "stages"),
    "family_build": (
        "atomic",
        "family",
        "family_summary",
        "build",
        "run_directory",
        "stages",
        "report",
    ),
    # What a command does beyond one call stands in a module of its own, not in cli.
    "inspection": ("recipe", "atomic", "images", "models", "targets.profiles"),
    "evaluation": ("recipe", "run_directory", "build", "stages", "metrics", "device", *HOST_SIDE),
    "profiling": ("recipe", "run_directory", "build", "stages", "bundle", "device", "targets"),
    "review": ("run_directory", "atomic", "images", "report"),
    "key_sharing": ("ed25519", "run_directory", "atomic", "methods"),
    "demo": (
        "seeding",
        "recipe",
        "run_directory",
        "atomic",
        "build",
        "stages.work",
        *TRAINING_SIDE,
    ),
    "cli": (
        *("build", "ship", "device", "tuning", "recipe", "recipes", "family", "family_build"),
        *("demo", "inspection", "evaluation", "profiling", "review"),
        "key_sharing",
        "naming",
        "stages.summary",  # the verdict of verify and profile is that of a build
        "bundle.pack",  # bundle inspect, verify, unpack
        *("targets.adapters", "targets.profiles", "targets.gates"),  # doctor, devices, verdicts
    ),
}

ONLY_IN: dict[str, tuple[str, ...]] = {
    # Where a foreign package may be imported at all, lazily or not.
    "onnxruntime": ("targets.onnxruntime",),
    "openvino": ("targets.openvino",),
    "nncf": ("targets.openvino",),
    "tensorrt": ("targets.tensorrt",),
    "onnx": (
        "models",
        "targets.graph*",  # graph.py and the files it is made of
        "targets.*.builder",
        *("targets.onnxruntime.quantize", "targets.onnxruntime.activations"),
        *("targets.tensorrt.rules", "targets.tensorrt.graph_view", "targets.tensorrt.qdq*"),
    ),
    "torch": (
        "methods",
        *TRAINING_SIDE,
        "targets.graph",
        "stages",
        "seeding",
        "demo",
        "evaluation",
        "inspection",
    ),
    "torchvision": ("models", "images"),
    "torch_pruning": ("models.slimming",),
    "sklearn": ("demo", "metrics", "methods"),
    "matplotlib": ("report.*figures", "report.drawing"),
    "jinja2": ("report.html", "report.review_page", "bundle"),
    "typer": ("cli",),
    "rich": ("cli",),
}

MAX_CODE_LINES = 400  # without docstrings, comments and blank lines; the median file has about 80
LONGER_FILES: dict[str, str] = {  # path -> why it reads better in one piece
    "hydistill_edge/models/onnx_ops.py": "a catalogue: one short function per ONNX operator",
    "hydistill_edge/recipe.py": "the schema of the one file that a user writes, top to bottom",
}

NO_CODE = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER),
    *(tokenize.INDENT, tokenize.DEDENT),
)

RUNTIMES = ("onnxruntime", "openvino", "nncf", "tensorrt")
HEAVY = ("torch", "onnx", *RUNTIMES, "matplotlib", "sklearn")


def module_name(path: Path) -> str:
    """Return the name under which a file of the tree is imported."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])


SOURCES = {
    module_name(path): path for top in FOLDERS for path in sorted((ROOT / top).rglob("*.py"))
}


@dataclass(frozen=True)
class Import:
    """One import statement: the module it names, and its line."""

    module: str
    line: int


class ImportFinder(ast.NodeVisitor):
    """Collects the imports of a module, those under `if TYPE_CHECKING` apart."""

    def __init__(self, name: str, is_package: bool) -> None:
        self.parents = name.split(".") if is_package else name.split(".")[:-1]
        self.found: list[Import] = []

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        name = test.id if isinstance(test, ast.Name) else getattr(test, "attr", "")
        for child in node.orelse if name == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self.parents[: len(self.parents) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:  # `from package import module` names the module
            inner = f"{base}.{alias.name}"
            self.found.append(Import(inner if inner in SOURCES else base, node.lineno))


def imports_of(name: str) -> list[Import]:
    path = SOURCES[name]
    finder = ImportFinder(name, path.name == "__init__.py")
    finder.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return finder.found


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the patterns, or lies inside one."""
    return any(fnmatchcase(name, row) or fnmatchcase(name, f"{row}.*") for row in patterns)


def row_of(inner: str) -> str:
    """Return the most specific row of MAY_IMPORT for a module, named without the package."""
    rows = [row for row in MAY_IMPORT if matches(inner, (row,))]
    return max(rows, key=len, default="")


def house_problems() -> Iterator[str]:
    for name in SOURCES:
        inner = name.removeprefix(PACKAGE).removeprefix(".")
        row = row_of(inner)
        if inner and not row:
            yield f"{inner}: no row in MAY_IMPORT; add one that says what it may import"
            continue
        for found in imports_of(name):
            target = found.module.removeprefix(PACKAGE).removeprefix(".")
            if found.module == PACKAGE or found.module.split(".")[0] != PACKAGE or not inner:
                continue
            if not matches(target, (row.split(".")[0], "errors", *MAY_IMPORT[row])):
                where = f"{SOURCES[name].relative_to(ROOT)}:{found.line}"
                yield f"{where}: {row} may not import {target}"


def foreign_problems() -> Iterator[str]:
    for name in SOURCES:
        inner = name.removeprefix(PACKAGE).removeprefix(".")
        for found in imports_of(name):
            package = found.module.split(".")[0]
            if package in ONLY_IN and not matches(inner, ONLY_IN[package]):
                allowed = ", ".join(ONLY_IN[package])
                where = f"{SOURCES[name].relative_to(ROOT)}:{found.line}"
                yield f"{where}: {package} is imported only in {allowed}"


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, in a folder that is not ours; return its stdout."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rooms_import_only_the_rooms_they_may() -> None:
    assert list(house_problems()) == []


def test_foreign_packages_are_imported_only_in_their_rooms() -> None:
    assert list(foreign_problems()) == []


def test_import_finder_sees_lazy_and_relative_imports_but_not_those_for_types() -> None:
    finder = ImportFinder("hydistill_edge.report.html", is_package=False)

    finder.visit(
        ast.parse(
            "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n"
            "def f():\n    import openvino as ov\nfrom . import data\nfrom ..errors import X\n"
        )
    )

    found = [item.module for item in finder.found]
    assert found[:2] == ["numpy", "openvino"]
    assert found[2:] in (
        ["hydistill_edge.report.data", "hydistill_edge.errors"],
        ["hydistill_edge.report", "hydistill_edge.errors"],  # before report/data.py exists
    )


LEAN = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.device", f"{PACKAGE}.cli"])
def test_import_loads_no_heavy_package(module: str) -> None:
    assert run_python(LEAN, module, *HEAVY).split() == []


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.targets", f"{PACKAGE}.calibration"])
def test_moved_folders_have_no_second_name_in_sys_modules(module: str) -> None:
    assert run_python(LEAN, module, "targets", "calibration").split() == []


def test_moved_folders_have_no_second_name_in_the_test_session() -> None:
    assert not {"targets", "calibration"} & set(sys.modules)


BLOCKED = """
import importlib, sys

# None in sys.modules is how Python itself marks a module that cannot be imported; those who only
# ask whether it is there (importlib.util.find_spec) get a no, and no exception.
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
for name in sys.argv[2:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 2)
"""


@dataclass(frozen=True)
class LeanCase:
    """Modules that must import although some packages are missing."""

    id: str
    rows: tuple[str, ...]
    blocked: tuple[str, ...]


LEAN_CASES = [
    LeanCase(
        "training-side-without-pydantic-and-runtimes",
        ("errors", "methods", *TRAINING_SIDE),
        ("pydantic", *RUNTIMES),
    ),
    LeanCase("targets-without-runtimes-and-torch", ("targets",), (*RUNTIMES, "torch")),
    LeanCase(
        "device-side-without-the-build-extra",
        ("device", *MAY_IMPORT["device"]),
        (*HEAVY, "torchvision", "safetensors", "jinja2"),
    ),
    LeanCase("calibration-with-numpy-alone", ("calibration",), (*HEAVY, "pydantic", "yaml")),
]


@pytest.mark.parametrize("case", LEAN_CASES, ids=lambda case: case.id)
def test_modules_import_when_packages_they_do_not_need_are_missing(case: LeanCase) -> None:
    inner = [name.removeprefix(f"{PACKAGE}.") for name in SOURCES if name != PACKAGE]
    names = [name for name in inner if matches(name, case.rows)]

    out = run_python(BLOCKED, ",".join(case.blocked), *(f"{PACKAGE}.{name}" for name in names))

    assert out == f"imported {len(names)}\n"


def code_lines(path: Path) -> int:
    """Count the lines that hold code: neither docstring, comment nor blank."""
    source = path.read_text(encoding="utf-8")
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(ROOT)): code_lines(path) for path in SOURCES.values()}
    long = {name: lines for name, lines in lengths.items() if lines > MAX_CODE_LINES}

    assert {name: lines for name, lines in long.items() if name not in LONGER_FILES} == {}
    assert sorted(set(LONGER_FILES) - set(long)) == [], "no longer long: take them off the list"


def test_exported_names_are_these() -> None:
    assert hydistill_edge.__all__ == ["Build", "Recipe", "__version__", "build"]
    assert dir(hydistill_edge) == hydistill_edge.__all__


@pytest.mark.parametrize("name", hydistill_edge.__all__)
def test_exported_name_is_there(name: str) -> None:
    assert getattr(hydistill_edge, name) is not None


SHADOWED = """
import hydistill_edge.build
from hydistill_edge import build
print(build is sys.modules["hydistill_edge.build"].build)
"""


def test_build_is_the_function_when_its_module_was_imported_before() -> None:
    assert run_python("import sys" + SHADOWED) == "True\n"


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'biuld'"):
        _ = importlib.import_module(PACKAGE).biuld
