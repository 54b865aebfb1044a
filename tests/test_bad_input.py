"""Bad input gets one clear error, with the exit code of the documented table, and loses nothing.

Every case goes through the command line, into a run directory that holds a finished build.
"""

from __future__ import annotations

import io
import stat
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from hydistill_edge.run_directory import RunDirectory

ARTIFACT = "onnxruntime-x86-avx2-int8"
NOISE = np.random.default_rng(0).bytes(3000)
PROVISIONAL = {"recipe.yaml", "environment.json"}  # follow the recipe from stage teacher on

Contents = Callable[[Path], dict[str, str]]
Refused = Callable[..., str]


@dataclass(frozen=True)
class Case:
    """Something bad that a recipe names.

    Attributes:
        make: writes it into a folder; returns the changes of the tiny recipe that name it.
        says: words that the message must have.
        code: the exit code.
    """

    id: str
    make: Callable[[Path, Any], Mapping[str, Any]]
    says: tuple[str, ...]
    code: int = 2


def file(name: str, data: bytes, **changes: Any) -> Callable[[Path, Any], Mapping[str, Any]]:
    """Return a maker of a teacher file with these bytes."""

    def make(folder: Path, _: Any) -> Mapping[str, Any]:
        (folder / name).write_bytes(data)
        return weights(folder / name, **changes)

    return make


def weights(path: Path, **changes: Any) -> Mapping[str, Any]:
    if path.suffix == ".onnx":
        changes = {"architecture": None, "options": None, **changes}
    return {"teacher": {"weights": str(path), **changes}}


def pickled(folder: Path, _: Any) -> Mapping[str, Any]:
    torch.save(nn.Linear(2, 2), folder / "teacher.pt")
    return weights(folder / "teacher.pt")


def torchscript(folder: Path, _: Any) -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what people have
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "teacher.pt"))
    return weights(folder / "teacher.pt")


def exported_program(folder: Path, _: Any) -> Mapping[str, Any]:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, folder / "teacher.pt2")
    return weights(folder / "teacher.pt2")


def altered(
    change: Callable[[torch.Tensor], torch.Tensor], ending: str
) -> Callable[[Path, Any], Mapping[str, Any]]:
    """Return a maker of a teacher file with one tensor changed."""

    def make(folder: Path, tiny: Any) -> Mapping[str, Any]:
        tensors = load_file(tiny.teacher)
        name = next(name for name in tensors if name.endswith(ending))
        save_file({**tensors, name: change(tensors[name])}, folder / "teacher.safetensors")
        return weights(folder / "teacher.safetensors")

    return make


def torn(folder: Path, tiny: Any) -> Mapping[str, Any]:
    (folder / "teacher.safetensors").write_bytes(tiny.teacher.read_bytes()[:-100])
    return weights(folder / "teacher.safetensors")


def onnx_with_weights_in(location: str) -> Callable[[Path, Any], Mapping[str, Any]]:
    """Return a maker of an ONNX teacher that keeps a weight in another file."""

    def make(folder: Path, _: Any) -> Mapping[str, Any]:
        from onnx import TensorProto, helper

        kernel = TensorProto(name="kernel", data_type=TensorProto.FLOAT, dims=(4, 1, 8, 8))
        kernel.data_location = TensorProto.EXTERNAL
        kernel.external_data.add(key="location", value=location)
        nodes = [
            helper.make_node("Conv", ["image", "kernel"], ["map"]),
            helper.make_node("Flatten", ["map"], ["logits"]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])
        graph = helper.make_graph(nodes, "teacher", [image], [logits], [kernel])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        (folder / "teacher.onnx").write_bytes(model.SerializeToString())
        (folder.parent / "outside.bin").write_bytes(bytes(1024))
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        return weights(folder / "teacher.onnx")

    return make


def python_file(text: str) -> Callable[[Path, Any], Mapping[str, Any]]:
    """Return a maker of a factory file with this text."""

    def make(folder: Path, tiny: Any) -> Mapping[str, Any]:
        (folder / "net.py").write_text(text)
        return weights(tiny.teacher, architecture="net.py:build", options=None)

    return make


SAFETENSORS, PT, ONNX = "teacher.safetensors", "teacher.pt", "teacher.onnx"
SAVE_ALONE = "save the weights alone"

TEACHERS = [
    Case("noise-safetensors", file(SAFETENSORS, NOISE), ("neither safetensors nor", SAVE_ALONE)),
    Case("noise-pt", file(PT, NOISE), ("neither safetensors nor", SAVE_ALONE)),
    Case("noise-onnx", file(ONNX, NOISE), ("not an ONNX model", "export it again")),
    Case("empty", file(SAFETENSORS, b""), ("an empty file",)),
    Case("torn", torn, ("truncated safetensors file", "copy it again")),
    Case("pickled", pickled, ("pickled objects", "torch.nn.modules.linear.Linear", "state_dict")),
    Case("torchscript", torchscript, ("TorchScript", "carries code", "export the model to ONNX")),
    Case("exported-program", exported_program, (".pt2", "pickled code", "export the model")),
    Case("folder", lambda folder, _: weights(folder), ("a folder; name the weight file",)),
    Case("missing", lambda folder, _: weights(folder / PT), ("do not exist", PT), code=3),
    Case(
        "nan",
        altered(lambda tensor: tensor * float("nan"), "conv1.weight"),
        ("NaN or infinity in", "conv1.weight", "earlier checkpoint"),
    ),
    Case(
        "negative-variance",
        altered(lambda tensor: tensor * 0 - 1, "running_var"),
        ("not finite", "earlier checkpoint"),
    ),
    Case(
        "weights-of-another-architecture",
        lambda _, tiny: weights(tiny.teacher, architecture="zoo:resnet20"),
        ("do not fit the architecture", "missing, 60 of"),
    ),
    Case(
        "unknown-option",
        lambda _, tiny: weights(tiny.teacher, options={"widht": 0.25}),
        ("zoo:resnet8", "widht", "check the options"),
    ),
    Case(
        "more-outputs-than-classes",
        lambda _, tiny: weights(tiny.teacher, classes=["bolt", "nut", "washer"]),
        ("4 outputs", "3 are asked for", "one class name per output"),
    ),
    Case(
        "fewer-outputs-than-classes",
        lambda _, tiny: weights(tiny.teacher, classes=[*tiny.classes, "dust"]),
        ("4 outputs", "5 are asked for"),
    ),
    Case(
        "no-python-file",
        lambda _, tiny: weights(tiny.teacher, architecture="my_net.py:build"),
        ("my_net.py", "do not exist"),
        code=3,
    ),
    Case("python-file-breaks", python_file("def build(:"), ("net.py", "SyntaxError")),
    Case("python-file-exits", python_file("raise SystemExit(7)"), ("net.py", "SystemExit: 7")),
    Case("no-such-factory", python_file("def make(): ..."), ('no factory "build"', "make")),
    Case("onnx-absolute", onnx_with_weights_in("/etc/hostname"), ("outside", "as one file")),
    Case("onnx-climbs-out", onnx_with_weights_in("../outside.bin"), ("outside", "as one file")),
    Case("onnx-link", onnx_with_weights_in("link.bin"), ("outside", "as one file")),
    Case("onnx-half", onnx_with_weights_in("gone.bin"), ("gone.bin", "is missing"), code=3),
]  # fmt: skip


@pytest.mark.parametrize("case", TEACHERS, ids=lambda case: case.id)
def test_teacher_is_refused_and_the_finished_run_stays_as_it_was(
    case: Case,
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    refused: Refused,
    contents: Contents,
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    recipe = tiny_inputs.recipe(folder / "recipe.yaml", **case.make(folder, tiny_inputs))
    before = contents(run_copy)

    refused("build", recipe, "--out", run_copy, code=case.code, says=case.says)

    assert contents(run_copy) == before


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def real(kind: str, path: Path) -> Mapping[str, Any]:
    return {"images": {"real": [{"kind": kind, "path": str(path)}]}}


def folder_with(data: bytes) -> Callable[[Path, Any], Mapping[str, Any]]:
    """Return a maker of an image folder with a good image and one of these bytes."""

    def make(folder: Path, _: Any) -> Mapping[str, Any]:
        (folder / "photos").mkdir()
        (folder / "photos" / "good.png").write_bytes(png(GREY))
        (folder / "photos" / "bad.png").write_bytes(data)
        return real("folder", folder / "photos")

    return make


def npz_of(**arrays: np.ndarray) -> Callable[[Path, Any], Mapping[str, Any]]:
    def make(folder: Path, _: Any) -> Mapping[str, Any]:
        np.savez(folder / "pilot.npz", **arrays)
        return real("npz", folder / "pilot.npz")

    return make


def damaged_npz(
    damage: Callable[[bytearray], bytearray],
) -> Callable[[Path, Any], Mapping[str, Any]]:
    def make(folder: Path, tiny: Any) -> Mapping[str, Any]:
        data = bytearray((tiny.folder / "pilot.npz").read_bytes())
        (folder / "pilot.npz").write_bytes(damage(data))
        return real("npz", folder / "pilot.npz")

    return make


def flipped(data: bytearray) -> bytearray:
    data[len(data) // 2] ^= 1
    return data


def shard_of(*images: bytes, cut: int | None = None) -> Callable[[Path, Any], Mapping[str, Any]]:
    """Return a maker of a tar shard, cut off after so many bytes."""

    def make(folder: Path, _: Any) -> Mapping[str, Any]:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for index, data in enumerate(images):
                member = tarfile.TarInfo(f"{index:06d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        (folder / "pool.tar").write_bytes(stream.getvalue()[:cut])
        return real("shards", folder / "pool.tar")

    return make


def noise_as(kind: str, name: str) -> Callable[[Path, Any], Mapping[str, Any]]:
    def make(folder: Path, _: Any) -> Mapping[str, Any]:
        (folder / name).write_bytes(NOISE)
        return real(kind, folder / name)

    return make


IMAGES = [
    Case("noise-image", folder_with(NOISE), ("1 of 2 images", "bad.png", "not an image")),
    Case("truncated-image", folder_with(png(GREY)[:-30]), ("bad.png", "truncated or corrupt")),
    Case("image-of-another-size", folder_with(png(GREY[:4])), ("not 8x8x1", "4x8x1", "adapt")),
    Case("colour-image", folder_with(png(np.stack([GREY] * 3, 2))), ("8x8x3", "adapt to true")),
    Case("noise-npz", noise_as("npz", "a.npz"), ("a.npz", "no .npz archive", "numpy.savez")),
    Case("truncated-npz", damaged_npz(lambda data: data[:-200]), ("truncated", "numpy.savez")),
    Case("flipped-npz", damaged_npz(flipped), ("pilot.npz", "corrupt", "CRC")),
    Case("pickle-npz", npz_of(images=np.array([{}])), ("pilot.npz", "plain arrays")),
    Case("float-npz", npz_of(images=np.zeros((9, 8, 8, 1))), ("float64", "expected", "uint8")),
    Case("npz-of-another-size", npz_of(images=np.zeros((9, 16, 8), np.uint8)), ("16x8x1", "adapt")),
    Case("npz-without-images", npz_of(pixels=np.zeros(3)), ('no array "images"', "pixels")),
    Case("noise-shard", noise_as("shards", "a.tar"), ("a.tar", "no tar file")),
    Case("truncated-shard", shard_of(png(GREY), png(GREY.T), cut=700), ("pool.tar", "torn")),
    Case("noise-in-shard", shard_of(png(GREY), NOISE), ("pool/000001", "not an image")),
    Case("noise-safetensors", noise_as("safetensors", "a.safetensors"), ("no safetensors file",)),
    Case("no-such-file", lambda folder, _: real("npz", folder / "a.npz"), ("a.npz",), code=3),
    Case("no-such-shard", lambda folder, _: real("shards", folder / "*.tar"), ("*.tar",), code=3),
]  # fmt: skip


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.id)
def test_real_images_are_refused_and_what_was_finished_stays(
    case: Case,
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    refused: Refused,
    contents: Contents,
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    recipe = tiny_inputs.recipe(folder / "recipe.yaml", **case.make(folder, tiny_inputs))
    before = contents(run_copy)

    refused("build", recipe, "--out", run_copy, code=case.code, says=case.says)

    after = contents(run_copy)
    assert {name for name in before if before[name] != after.get(name)} <= PROVISIONAL
    assert set(after) == set(before)


def test_build_is_refused_before_training_when_images_are_too_few(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    np.savez(tmp_path / "few.npz", images=SOME[:3])
    images = {**real("npz", tmp_path / "few.npz")["images"], "synthetic": {"count": 0}}
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", images=images)

    refused("build", recipe, "--out", tmp_path / "run", code=2, says=("3 different images", "more"))

    assert not (tmp_path / "run" / "student").exists()


def test_build_is_refused_before_training_when_calibration_asks_for_all_images(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, refused: Refused
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", calibration={"count": 100_000})

    says = ("96 different images", "calibration.count 100000", "lower calibration.count")
    refused("build", recipe, "--out", run_copy, code=2, says=says)


SOME = np.random.default_rng(1).integers(0, 256, (24, 8, 8, 1), np.uint8)

EVALUATIONS = [
    ("unlabelled", {"images": SOME}, ("has no labels", "class folders")),
    ("one-class-missing", {"images": SOME, "labels": np.arange(24) % 3}, ("no image", '"nothing"')),
    ("unknown-class", {"images": SOME, "labels": np.arange(24) % 5}, ("label 4", "0 to 3")),
    ("too-few-labels", {"images": SOME, "labels": np.arange(9) % 4}, ("labels", "one per image")),
    ("some-unlabelled", {"images": SOME, "labels": np.arange(24) % 5 - 1}, ("without a label",)),
]
OTHER_ARRAYS = [
    ("no-images", {"pictures": SOME}, ("evaluation:", "images")),
    ("other-size", {"images": SOME[:, :6], "labels": np.arange(24) % 4}, ("6x8x1", "adapt")),
]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [case[1:] for case in EVALUATIONS],
    ids=[case[0] for case in EVALUATIONS],
)
def test_evaluation_images_are_refused_by_build_and_by_evaluate(
    arrays: dict[str, Any],
    says: tuple[str, ...],
    tiny_inputs: Any,
    run_copy: Path,
    tmp_path: Path,
    refused: Refused,
    contents: Contents,
) -> None:
    data = tmp_path / "holdout.npz"
    np.savez(data, **arrays)
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", evaluation={"path": str(data)})
    before = contents(run_copy)

    refused("evaluate", run_copy, "--data", data, code=2, says=says)
    assert contents(run_copy) == before
    refused("build", recipe, "--out", run_copy, code=2, says=says)
    assert contents(run_copy) == before


@pytest.mark.parametrize(
    ("arrays", "says"),
    [case[1:] for case in (*EVALUATIONS, *OTHER_ARRAYS)],
    ids=[case[0] for case in (*EVALUATIONS, *OTHER_ARRAYS)],
)
def test_evaluation_images_are_refused_before_the_first_stage(
    arrays: dict[str, Any],
    says: tuple[str, ...],
    tiny_inputs: Any,
    tmp_path: Path,
    refused: Refused,
) -> None:
    data = tmp_path / "holdout.npz"
    np.savez(data, **arrays)
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", evaluation={"path": str(data)})

    refused("build", recipe, "--out", tmp_path / "run", code=2, says=("evaluation: ", *says))

    assert not (tmp_path / "run" / "teacher.json").exists()


def test_evaluation_folder_is_refused_before_the_first_stage_when_a_class_has_no_image(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    for name in ("bolt", "nut", "washer", "nothing"):
        (tmp_path / "holdout" / name).mkdir(parents=True)
    Image.fromarray(SOME[0, :, :, 0]).save(tmp_path / "holdout" / "bolt" / "0.png")
    source = {"kind": "folder", "path": str(tmp_path / "holdout")}
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", evaluation=source)

    says = ("evaluation: ", "no image of 3 of 4 classes", '"nut"', "add some")
    refused("build", recipe, "--out", tmp_path / "run", code=2, says=says)

    assert not (tmp_path / "run" / "teacher.json").exists()


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)

RECIPES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("noise", NOISE, ("not a text file",)),
    ("empty", b"", ("name: this key is missing", "student", "targets")),
    ("a-list", b"- teacher\n- student\n", ("a recipe is a mapping of sections, not a list",)),
    ("broken-yaml", b"name: [tiny\nseed: 0\n", ("line 2", "broken YAML")),
    ("tab", b"name: tiny\n\tseed: 0\n", ("line 2", "broken YAML")),
    ("alias-in-itself", b"a: &a [*a]\n", ("itself",)),
    ("nested-too-deeply", b"a: " + b"[" * 400 + b"]" * 400, ("deep",)),
    ("multiplying-aliases", BOMB.encode(), ("aliases",)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [r[1:] for r in RECIPES], ids=[r[0] for r in RECIPES])
def test_recipe_is_refused_and_the_finished_run_stays_as_it_was(
    text: bytes,
    says: tuple[str, ...],
    run_copy: Path,
    tmp_path: Path,
    refused: Refused,
    contents: Contents,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text)
    before = contents(run_copy)

    refused("build", recipe, "--out", run_copy, code=2, says=(str(recipe), *says))
    refused("recipe", "check", recipe, code=2, says=says)

    assert contents(run_copy) == before


@dataclass(frozen=True)
class Key:
    """One key of a good recipe that is missing, renamed, misspelt or wrong."""

    id: str
    change: Callable[[dict[str, Any]], Any]
    says: tuple[str, ...]


KEYS = [
    Key("missing-name", lambda r: r.pop("name"), ("name: this key is missing",)),
    Key("missing-student", lambda r: r.pop("student"), ("student: this key is missing",)),
    Key("missing-teacher", lambda r: r.pop("teacher"), ("method kd needs a teacher",)),
    Key("missing-input", lambda r: r["teacher"].pop("input"), ("teacher.input", "missing")),
    Key("null-section", lambda r: r.update(student=None), ("student", "None")),
    Key("renamed", lambda r: r.update(model=r.pop("student")), ("model: unknown key", "student")),
    Key("misspelt", lambda r: r["training"].update(stpes=6), ("stpes", 'did you mean "steps"')),
    Key("misspelt-inside", lambda r: r["targets"][0].update(devise="host"), ("devise", "device")),
    Key("wrong-unit", lambda r: r["gates"].update(student_agreement=95), ("write 0.95",)),
    Key("wrong-type", lambda r: r["training"].update(steps="many"), ("training.steps", "'many'")),
    Key("out-of-range", lambda r: r["training"].update(steps=0), ("steps is 0", "at least 1")),
    Key("unknown-device", lambda r: r["targets"][0].update(device="x86"), ("no device", "host")),
    Key("same-artifact-twice", lambda r: r["targets"].append(
        {**r["targets"][0], "device": "x86-avx2"}), ("twice",)),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.id)
def test_recipe_key_is_refused_with_its_place(
    key: Key, tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    content = yaml.safe_load(recipe.read_text())
    key.change(content)
    recipe.write_text(yaml.safe_dump(content))

    message = refused("build", recipe, "--out", tmp_path / "run", code=2, says=key.says)

    assert message.startswith(f"{recipe}: ")
    assert not (tmp_path / "run").exists()


PROFILES = [
    ("limit-of-zero", {"latency": {"limit_ms": 0}}, ("limit_ms is 0", "more than 0")),
    ("limit-of-days", {"latency": {"limit_ms": 1e9}}, ("limit_ms is 1e+09", "under an hour")),
    ("limit-with-a-unit", {"latency": {"limit_ms": "5 ms"}}, ("latency.limit_ms", "'5 ms'")),
    ("unknown-percentile", {"latency": {"percentile": "p95"}}, ("p95", "'p99'")),
    ("no-threads", {"threads": 0}, ("threads", "got 0")),
    ("misspelt-key", {"thraeds": 1}, ("thraeds", '"threads"')),
]


@pytest.mark.parametrize(
    ("change", "says"), [p[1:] for p in PROFILES], ids=[p[0] for p in PROFILES]
)
def test_device_profile_is_refused_when_it_is_impossible(
    change: dict[str, Any],
    says: tuple[str, ...],
    tiny_inputs: Any,
    tmp_path: Path,
    refused: Refused,
) -> None:
    from hydistill_edge.targets.profiles import DEVICES

    profile = yaml.safe_load((DEVICES / "x86-avx2.yaml").read_text())
    latency = {"percentile": "p99", "limit_ms": 5, "scope": "engine", **change.get("latency", {})}
    path = tmp_path / "line3.yaml"
    path.write_text(yaml.safe_dump({**profile, **change, "name": "line3", "latency": latency}))
    targets = [{"target": "onnxruntime", "device": str(path)}]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets)

    refused("build", recipe, "--out", tmp_path / "run", code=2, says=("targets[0].device", *says))
    refused("devices", "show", path, code=2, says=says)


def test_device_profile_is_refused_when_nobody_knows_its_name(
    finished_build: Path, refused: Refused
) -> None:
    bundle = next((finished_build / "bundle").iterdir())

    refused("devices", "show", "raspberry-pi", code=2, says=("raspberry-pi-5", "did you mean"))
    refused("profile", bundle, "--device", "n100", "--mode", "demo", code=2, says=("n100", "known"))


def zipped(name: str, *, link: bool = False, deflate: bool = False) -> bytes:
    """Return a zip archive with one file of ten million zeros, or with one link."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (stat.S_IFLNK if link else stat.S_IFREG) << 16 | 0o644 << 16
        entry.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        archive.writestr(entry, b"/etc/hostname" if link else bytes(10_000_000))
    return stream.getvalue()


BUNDLES: list[tuple[str, Callable[[bytes], bytes], tuple[str, ...]]] = [
    ("noise", lambda _: NOISE, ("not a bundle",)),
    ("empty", lambda _: b"", ("0 bytes",)),
    ("truncated", lambda data: data[:-10], ("truncated",)),
    ("link", lambda _: zipped("model/model.onnx", link=True), ("a symbolic link",)),
    ("path-traversal", lambda _: zipped("../../evil"), ("'../../evil'", "leaves its folder")),
    ("absolute-path", lambda _: zipped("/tmp/evil"), ("'/tmp/evil'", "an absolute path")),
    ("zip-bomb", lambda _: zipped("manifest.json", deflate=True), ("compressed",)),
]


@pytest.mark.parametrize(("spoil", "says"), [b[1:] for b in BUNDLES], ids=[b[0] for b in BUNDLES])
def test_bundle_is_refused_by_every_command_and_nothing_is_written(
    spoil: Callable[[bytes], bytes],
    says: tuple[str, ...],
    finished_build: Path,
    tiny_inputs: Any,
    tmp_path: Path,
    refused: Refused,
) -> None:
    whole = next((finished_build / "bundle").iterdir())
    bundle = tmp_path / "widgets.hydistill"
    bundle.write_bytes(spoil(whole.read_bytes()))

    refused("bundle", "inspect", bundle, code=2, says=says)
    refused("bundle", "verify", bundle, code=2, says=says)
    refused("bundle", "unpack", bundle, "--out", tmp_path / "out", code=2, says=says)
    refused("profile", bundle, "--mode", "demo", code=2, says=says)
    refused("evaluate", bundle, "--data", tiny_inputs.folder / "holdout.npz", code=2, says=says)

    assert [path.name for path in tmp_path.iterdir()] == ["widgets.hydistill"]


def test_bundle_with_one_altered_byte_is_refused_wherever_the_byte_stands(
    finished_build: Path, tmp_path: Path, refused: Refused
) -> None:
    whole = next((finished_build / "bundle").iterdir()).read_bytes()
    bundle = tmp_path / "widgets.hydistill"
    for place in np.linspace(0, len(whole) - 1, 25).astype(int):
        bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused("bundle", "verify", bundle, code=2, says=(str(bundle),))
        refused("bundle", "unpack", bundle, "--out", tmp_path / "out", code=2)
        assert not (tmp_path / "out").exists()


def test_bundle_commands_refuse_wrong_places(finished_build: Path, refused: Refused) -> None:
    bundle = next((finished_build / "bundle").iterdir())
    refused("bundle", "unpack", bundle, "--out", finished_build, code=2, says=("exists already",))
    refused("bundle", "verify", finished_build, code=2, says=("not a file",))
    refused("bundle", "verify", finished_build / "absent", code=3, says=("no such file",))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_build_is_refused_before_any_work_when_a_runtime_is_absent(
    tiny_inputs: Any, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [{"target": "openvino", "device": "x86-avx2"}]
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml", targets=targets)
    without(monkeypatch, "openvino", "nncf")

    says = ('target "openvino"', 'pip install "hydistill-edge[openvino]"')
    refused("build", recipe, "--out", tmp_path / "run", code=3, says=says)

    assert not (tmp_path / "run" / "teacher.json").exists()


def test_finished_run_stays_whole_when_its_runtime_is_absent(
    tiny_inputs: Any,
    run_copy: Path,
    refused: Refused,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = next((run_copy / "bundle").iterdir())
    data = tiny_inputs.folder / "holdout.npz"
    before = contents(run_copy)
    without(monkeypatch, "onnxruntime")

    says = ('target "onnxruntime"', 'pip install "hydistill-edge[onnxruntime]"')
    refused("verify", run_copy, code=3, says=says)
    refused("evaluate", run_copy, "--data", data, code=3, says=says)
    refused("evaluate", bundle, "--data", data, code=3, says=says)
    refused("profile", bundle, "--mode", "demo", code=3, says=says)

    lost = set(before) - set(contents(run_copy))
    assert lost == {f"stages/parity.{ARTIFACT}.json"}  # verify proves again: its record waits


@pytest.mark.parametrize("stage", ["images", "student", "graph", "targets", "bundle", "report"])
def test_stage_alone_is_refused_when_what_it_reads_is_missing(
    stage: str, tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")

    message = refused("build", recipe, "--out", tmp_path / "run", "--only", stage, code=3)

    assert "run" in message
    assert str(tmp_path / "run") in message


def test_unknown_stage_is_refused_with_the_known_ones(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    says = ('no stage "studnet"', "student", "report")
    refused("build", recipe, "--out", tmp_path / "run", "--only", "studnet", code=2, says=says)
    assert not (tmp_path / "run").exists()


def test_run_directory_is_refused_when_it_is_something_else(
    tiny_inputs: Any, tmp_path: Path, refused: Refused, contents: Contents
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    thesis = tmp_path / "thesis"
    (thesis / "stages").mkdir(parents=True)  # looks a little like a run
    (thesis / "stages" / "one.json").write_text("{}")
    (thesis / "chapter.partial").write_text("important")
    before = contents(thesis)

    refused("build", recipe, "--out", thesis, code=2, says=("not empty", "--out"))
    refused("build", recipe, "--out", recipe, code=2, says=("is a file", "a folder"))
    refused("build", recipe, "--out", recipe / "run", code=2, says=("cannot be used", "--out"))

    assert contents(thesis) == before


def test_second_build_is_refused_while_the_first_has_the_run(
    tiny_inputs: Any, run_copy: Path, tmp_path: Path, refused: Refused, contents: Contents
) -> None:
    recipe = tiny_inputs.recipe(tmp_path / "recipe.yaml")
    before = contents(run_copy)
    with RunDirectory(run_copy):
        refused("build", recipe, "--out", run_copy, code=2, says=("in use", "wait for it"))
        refused("verify", run_copy, code=2, says=("in use",))
        refused("profile", run_copy, "--mode", "demo", code=2, says=("in use",))
    assert contents(run_copy) == before


def test_commands_refuse_a_folder_that_is_no_run(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    for folder in (tiny_inputs.folder, tmp_path / "absent"):
        refused("verify", folder, code=3, says=(str(folder), "no run directory"))
    data = tiny_inputs.folder / "holdout.npz"
    refused("profile", tiny_inputs.folder, "--mode", "demo", code=3, says=("no run directory",))
    refused("evaluate", tiny_inputs.folder, "--data", data, code=3, says=("no run directory",))
    refused("evaluate", tmp_path / "absent", "--data", data, code=3, says=("no such file",))


def test_commands_refuse_options_that_make_no_sense(
    finished_build: Path, tiny_inputs: Any, refused: Refused
) -> None:
    device = ("--device", "x86-vnni")
    refused("profile", finished_build, *device, code=2, says=("--device", "for a bundle"))
    refused("profile", finished_build, "--mode", "fast", code=2, says=('"fast"', "demo, quick"))
    refused("evaluate", finished_build, "--data", tiny_inputs.teacher, code=2, says=("images",))
    refused("evaluate", finished_build, "--data", "absent", code=3, says=("absent",))
    refused("inspect", tiny_inputs.teacher, code=2, says=("--size",))
    refused("inspect", tiny_inputs.teacher, "--size", "8", code=2, says=("architecture",))
    refused("inspect", "absent.pt", "--size", "8", code=3, says=("absent.pt",))
    refused("inspect", "--szie", "8", code=2, says=("--szie",))
    refused("biuld", code=2, says=("biuld",))


DAMAGED = [
    "recipe.yaml",
    "transfer/manifest.json",
    "transfer/shard-00000.safetensors",
    "student/student.json",
    "student/student.safetensors",
    "graph/*.onnx",
    f"targets/{ARTIFACT}/artifact.json",
    f"targets/{ARTIFACT}/model.onnx",
]


@pytest.mark.parametrize("name", DAMAGED)
def test_verify_names_the_file_of_the_run_that_is_noise(
    name: str, run_copy: Path, refused: Refused
) -> None:
    (path,) = run_copy.glob(name)
    path.write_bytes(np.random.default_rng(2).bytes(path.stat().st_size))
    refused("verify", run_copy, code=2, says=(str(path),))


def test_class_list_and_recipe_that_exists_are_refused_by_init(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "noise.txt").write_bytes(NOISE)
    (tmp_path / "recipe.yaml").write_text("name: precious\n")
    shape = (
        "--architecture",
        "zoo:resnet8",
        "--option",
        "width=0.25",
        "--size",
        8,
        "--channels",
        1,
    )
    new = ("--out", tmp_path / "new.yaml")

    noise = ("--classes", tmp_path / "noise.txt")
    refused("init", tiny_inputs.teacher, *shape, *new, *noise, code=2, says=("one class name",))
    refused("init", tiny_inputs.teacher, *shape, *new, "--device", "n100", code=2, says=("n100",))
    old = ("--out", tmp_path / "recipe.yaml")
    refused("init", tiny_inputs.teacher, *shape, *old, code=2, says=("exists already", "--force"))

    assert not (tmp_path / "new.yaml").exists()
    assert (tmp_path / "recipe.yaml").read_text() == "name: precious\n"
