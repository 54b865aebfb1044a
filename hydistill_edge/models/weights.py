"""Weight files: safe reading, exact matching, digests. No pickle is ever executed."""

from __future__ import annotations

import difflib
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from hydistill_edge.errors import MissingFileError, TeacherError

RESAVE = (
    "save the weights alone, in the training code: "
    '`safetensors.torch.save_file(model.state_dict(), "teacher.safetensors")` or '
    '`torch.save(model.state_dict(), "teacher.pt")`'
)
"""The remedy for every file that holds more than weights."""

SHOWN = 8
"""How many names of one kind a message lists."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a `.pt` that holds weights only.

    The content decides, not the suffix. Floating-point tensors come back as float32.

    Args:
        path: of the file.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        MissingFileError: no such file.
        TeacherError: a pickled module, TorchScript, `.pt2`, another format, a broken file, or
            weights that are not finite; with the reason and the remedy.
    """
    if not path.exists():
        raise MissingFileError(
            f"{path}: no such file; expected weights (.safetensors, .pt or .onnx)"
        )
    if path.is_dir():
        raise TeacherError(f"{path}: a folder; name the weight file inside it")
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[:4] == b"PK\x03\x04":
        tensors = _read_zip(path)
    elif head[:1] == b"\x80":
        tensors = _read_torch(path)
    elif head[8:9] == b"{":
        tensors = _read_safetensors(path)
    else:
        raise TeacherError(
            f"{path}: {_guess_format(path, head)}; expected safetensors or a .pt; {RESAVE}"
        )
    if not tensors:
        raise TeacherError(f"{path}: holds no tensors; {RESAVE}")
    tensors = {name: _as_float32(tensor) for name, tensor in tensors.items()}
    check_finite(tensors, source=str(path))
    return tensors


def check_finite(tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        TeacherError: naming the tensors.
    """
    bad = [
        f"{name} ({int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values)"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise TeacherError(
            f"{source}: NaN or infinity in {_some(bad)}; the training diverged or the file is "
            "damaged: "
            "take an earlier checkpoint"
        )


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy tensors into a network whose names and shapes they match exactly.

    Only `num_batches_tracked` may be missing: it counts training steps and changes no output.

    Args:
        network: filled in place.
        tensors: by name, as in the network's `state_dict`.
        source: named in messages, e.g. the file.

    Raises:
        TeacherError: a name is missing or unexpected, or a shape differs; the message is a diff
            with the closest names and, where one prefix explains it all, that prefix.
    """
    expected = network.state_dict()
    given = dict(tensors)
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, tensor)
    problems = diff_weights(expected, given)
    if problems:
        raise TeacherError(
            f"{source}: the weights do not fit the architecture\n  " + "\n  ".join(problems)
        )
    network.load_state_dict(given)


def diff_weights(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return what differs in names and shapes, one line each; empty if nothing does."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(expected[name].shape)} expected"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    lines = []
    if missing and unexpected:
        lines += _prefix_hint(list(expected), list(given))
    if missing:
        lines.append(
            f"missing, {len(missing)} of {len(expected)}: "
            f"{_some(_with_closest(missing, unexpected))}"
        )
    if unexpected:
        lines.append(f"unexpected, {len(unexpected)} of {len(given)}: {_some(unexpected)}")
    if shapes:
        lines.append(f"other shape, {len(shapes)}: {_some(shapes)}")
        lines += _output_hint(expected, given)
    return lines


def digest_weights(network: nn.Module) -> str:
    """Return the sha256 (hex) over names, types, shapes and bytes of a network's weights."""
    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        total.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        total.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except SafetensorError as error:
        raise TeacherError(
            f"{path}: a damaged or truncated safetensors file ({error}); copy it again"
        ) from error


def _read_zip(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise TeacherError(
            f"{path}: a damaged or truncated archive ({error}); copy it again"
        ) from error
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise TeacherError(
            f"{path}: a TorchScript archive: it carries code and hides the layers that methods "
            f"need; {RESAVE}, "
            "or export the model to ONNX"
        )
    exported = ("archive_format", "serialized_exported_program.json")
    if any(name in exported or name.startswith("models/") for name in names):
        raise TeacherError(
            f"{path}: an exported program (.pt2): reading one runs pickled code, so foreign ones "
            "are refused; "
            f"{RESAVE}, or export the model to ONNX"
        )
    if "data.pkl" not in names:
        raise TeacherError(f"{path}: a zip archive that torch.save did not write; {RESAVE}")
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"{path}: holds pickled objects besides tensors{_refused_class(error)}, and unpickling "
            f"runs the file's own code, so it was not read; {RESAVE}"
        ) from error
    except Exception as error:
        raise TeacherError(
            f"{path}: a damaged or truncated .pt file ({_first_line(error)}); copy it again, or "
            f"{RESAVE}"
        ) from error
    return _find_tensors(content, path)


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights of a state dict, or of a checkpoint with exactly one inside."""
    if _is_state(content):
        return dict(content)
    if isinstance(content, Mapping):
        states = {str(key): value for key, value in content.items() if _is_state(value)}
        if len(states) == 1:
            return dict(next(iter(states.values())))
        held = ", ".join(str(key) for key in content)
        which = f"{len(states)} sets of weights ({', '.join(states)})" if states else "no weights"
        raise TeacherError(
            f"{path}: a checkpoint with the entries {held}, holding {which}; {RESAVE}"
        )
    raise TeacherError(f"{path}: holds {type(content).__name__}, not named tensors; {RESAVE}")


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
        )
    )


def _guess_format(path: Path, head: bytes) -> str:
    if head[:4] == b"\x89HDF":
        return "an HDF5 file (Keras?): export the model to ONNX and name that"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file: export the original model to ONNX and name that"
    if not head:
        return "an empty file"
    if path.suffix == ".onnx":
        return "an ONNX file, which brings its own architecture: leave the architecture out"
    return f"neither safetensors nor a torch archive (it starts with {head[:8]!r})"


def _as_float32(tensor: Tensor) -> Tensor:
    # Half floats save space in files; training and folding need float32.
    return tensor.float().contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _with_closest(missing: Iterable[str], unexpected: list[str]) -> list[str]:
    lines = []
    for index, name in enumerate(missing):
        # Comparing is quadratic, and only the first names are shown.
        close = (
            difflib.get_close_matches(name, unexpected, n=1, cutoff=0.7) if index < SHOWN else []
        )
        lines.append(f"{name} (closest in the file: {close[0]})" if close else name)
    return lines


def _prefix_hint(expected: list[str], given: list[str]) -> list[str]:
    """Return a line if one prefix, taken off or put on, makes most of the names fit."""
    found = _best_prefix(given, set(expected))
    if found:
        prefix, fitting = found
        origin = {
            "module.": " (saved from DataParallel or DDP)",
            "_orig_mod.": " (saved from torch.compile)",
        }
        return [
            f'hint: without the prefix "{prefix}"{origin.get(prefix, "")} {fitting} of '
            f"{len(given)} names fit; "
            f'save again with `{{name.removeprefix("{prefix}"): t for name, t in state.items()}}`'
        ]
    found = _best_prefix(expected, set(given))
    if found:
        prefix, fitting = found
        return [
            f'hint: the architecture puts "{prefix}" before {fitting} of its {len(expected)} '
            "names, the file "
            "does not: name the factory of the inner network, or save the outer one"
        ]
    return []


def _best_prefix(names: list[str], wanted: set[str]) -> tuple[str, int] | None:
    """Return the leading part whose removal makes most of the names fit, and how many fit."""
    best: tuple[str, int] | None = None
    for depth in (1, 2):
        for prefix in {
            ".".join(name.split(".")[:depth]) + "." for name in names if name.count(".") >= depth
        }:
            fitting = sum(
                name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in names
            )
            if 2 * fitting >= len(names) and (best is None or fitting > best[1]):
                best = (prefix, fitting)
    return best


def _output_hint(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return a line if the last layer's number of outputs is what differs."""
    matrices = [name for name, tensor in expected.items() if tensor.dim() == 2 and name in given]
    if not matrices or given[matrices[-1]].dim() != 2:
        return []
    name = matrices[-1]
    in_file, wanted = given[name].shape[0], expected[name].shape[0]
    if in_file == wanted or given[name].shape[1] != expected[name].shape[1]:
        return []
    return [
        f"hint: {name} has {in_file} outputs in the file and {wanted} are asked for: "
        "give one class name per output, in the order of the outputs"
    ]


def _some(items: list[str]) -> str:
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f", and {rest} more" if rest > 0 else "")


def _refused_class(error: pickle.UnpicklingError) -> str:
    """Return the class that torch would not make, in brackets; nothing where it names none."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (such as {found[1]})" if found else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
