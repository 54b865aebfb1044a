from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hydistill_edge.errors import MissingFileError, TeacherError
from hydistill_edge.models.weights import diff_weights, digest_weights, load_into, read_weights


class Bomb:
    """Leaves a trace if anybody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


def state() -> dict[str, Tensor]:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()


def test_safetensors_and_pt_give_the_same_tensors(tmp_path: Path) -> None:
    tensors = state()
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pt")
    torch.save(tensors, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt", "c.pt"):
        found = read_weights(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_content_decides_when_the_suffix_lies(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").keys() == state().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.ones(2, dtype=dtype), "n": torch.tensor(3)}, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert (found["w"].dtype, found["n"].dtype) == (torch.float32, torch.int64)


def test_checkpoint_with_one_state_dict_is_opened(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": state(), "best": 0.9}, tmp_path / "c.pt")
    assert read_weights(tmp_path / "c.pt").keys() == state().keys()


def test_checkpoint_with_two_state_dicts_is_refused_with_their_names(tmp_path: Path) -> None:
    torch.save({"model": state(), "model_ema": state()}, tmp_path / "c.pt")
    with pytest.raises(TeacherError, match=r"2 sets of weights \(model, model_ema\)"):
        read_weights(tmp_path / "c.pt")


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(TeacherError, match=r"pickled objects.*state_dict"):
        read_weights(tmp_path / "m.pt")


def test_pickle_is_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"w": Bomb(trace)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Bomb(trace)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(TeacherError):
            read_weights(tmp_path / name)
    assert not trace.exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says itself that TorchScript is over
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    with pytest.raises(TeacherError, match=r"TorchScript.*ONNX"):
        read_weights(tmp_path / "s.pt")


def test_exported_program_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),))
    torch.export.save(program, tmp_path / "p.pt2")
    with pytest.raises(TeacherError, match=r"\.pt2.*pickled code"):
        read_weights(tmp_path / "p.pt2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(bytes(range(7, 250)), "neither safetensors nor", id="random"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "HDF5", id="keras"),
        pytest.param(b"\x1c\0\0\0TFL3" + b"\0" * 20, "TensorFlow Lite", id="tflite"),
        pytest.param(
            b"\xff" * 8 + b"{" + b"\0" * 20, "damaged or truncated safetensors", id="header"
        ),
        pytest.param(b"PK\x03\x04" + b"\0" * 20, "damaged or truncated archive", id="zip"),
        pytest.param(b"\x80\x02}q\x00.", "damaged or truncated|pickled", id="pickle"),
    ],
)
def test_other_bytes_are_refused_with_a_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(TeacherError, match=message):
        read_weights(tmp_path / "w.bin")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    save_file(state(), path) if suffix == "safetensors" else torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TeacherError, match="damaged or truncated"):
        read_weights(path)


def test_foreign_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a/b.txt", "text")
    with pytest.raises(TeacherError, match=r"torch\.save did not write"):
        read_weights(tmp_path / "w.zip")


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(TeacherError, match="a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    save_file(
        {"ok": torch.ones(2), "head.weight": torch.tensor([1, value])}, tmp_path / "w.safetensors"
    )
    with pytest.raises(TeacherError, match=r"head\.weight \(1 of 2 values\)"):
        read_weights(tmp_path / "w.safetensors")


def test_diff_is_empty_when_all_fits() -> None:
    assert diff_weights(state(), state()) == []


def test_diff_names_missing_with_the_closest_unexpected_and_shapes() -> None:
    expected = {"conv.weight": torch.ones(2), "fc.weight": torch.ones(3, 2)}
    given = {"conv.weigth": torch.ones(2), "fc.weight": torch.ones(4, 2)}
    text = "\n".join(diff_weights(expected, given))
    assert "missing, 1 of 2: conv.weight (closest in the file: conv.weigth)" in text
    assert "unexpected, 1 of 2: conv.weigth" in text
    assert "fc.weight: (4, 2) in the file, (3, 2) expected" in text
    assert "fc.weight has 4 outputs in the file and 3 are asked for" in text


@pytest.mark.parametrize(
    ("prefix", "origin"),
    [
        ("module.", "DataParallel or DDP"),
        ("_orig_mod.", "torch.compile"),
        ("model.backbone.", "save again"),
    ],
)
def test_diff_explains_a_common_prefix(prefix: str, origin: str) -> None:
    given = {prefix + name: tensor for name, tensor in state().items()}
    first = diff_weights(state(), given)[0]
    assert f'without the prefix "{prefix}"' in first
    assert origin in first


def test_diff_explains_a_prefix_that_the_file_lacks() -> None:
    expected = {"net." + name: tensor for name, tensor in state().items()}
    assert 'puts "net." before 7 of its 7 names' in diff_weights(expected, state())[0]


def test_load_into_fills_a_missing_step_counter() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    tensors = {name: tensor for name, tensor in state().items() if "num_batches" not in name}
    load_into(network, tensors, source="test")
    assert torch.equal(network[0].weight, tensors["0.weight"])


def test_digest_changes_with_a_single_weight() -> None:
    network = nn.Linear(2, 2)
    before = digest_weights(network)
    assert digest_weights(network) == before
    with torch.no_grad():
        network.bias[0] += 1e-6
    assert digest_weights(network) != before
