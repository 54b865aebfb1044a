"""From the name of an architecture to an untrained network.

`zoo:resnet18`, `torchvision:regnet_y_400mf`, or `path/my_net.py:build`, a factory function in the
user's own file. `projected:` in front of any of them is that network with a projector and its
teacher's classifier in place of its own last layers; `models.projected` makes these. `slimmed:` in
front is that network with fewer channels, `factored:` that with its layers as products of thinner
ones; `models.slimming` and `models.factoring` make these.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from hydistill_edge.errors import HydistillError, MissingFileError, TeacherError, UsageError
from hydistill_edge.models.low_rank import factorize
from hydistill_edge.models.projector import build_projected
from hydistill_edge.models.thinning import thin
from hydistill_edge.models.zoo import create_network

FORMS = '"zoo:NAME", "torchvision:NAME" or "my_net.py:FACTORY"'


def build_network(
    architecture: str,
    *,
    classes: int,
    channels: int,
    size: tuple[int, int],
    options: Mapping[str, Any] | None = None,
    base: Path | None = None,
) -> nn.Module:
    """Return a network of the named architecture, with fresh weights.

    Args:
        architecture: one of the three forms.
        classes: number of logits; a factory of the user's own gets only its options.
        channels: of the network's input.
        size: height and width of the network's input in pixels.
        options: keyword arguments of the factory, e.g. `{"width": 0.5}`; they win.
        base: folder that a relative path starts from; the working directory if None.

    Raises:
        UsageError: an unknown form or name.
        MissingFileError: the Python file does not exist.
        TeacherError: the factory fails, or returns something other than a network.
    """
    arguments = dict(options or {})
    kind, _, name = architecture.partition(":")
    if kind == "zoo":
        arguments = {"classes": classes, **_rename(arguments, "num_classes", "classes")}
        return _call(
            architecture, lambda: create_network(name, channels=channels, size=size, **arguments)
        )
    if kind == "torchvision":
        return _build_torchvision(name, {"num_classes": classes, **arguments})
    if kind == "projected":
        inner = arguments.pop("backbone", None)
        backbone = build_network(
            name, classes=classes, channels=channels, size=size, options=inner, base=base
        )
        return _call(
            architecture,
            lambda: build_projected(
                backbone, arguments, classes=classes, channels=channels, size=size
            ),
        )
    if kind in ("slimmed", "factored"):
        inner = arguments.pop("network", None)
        whole = build_network(
            name, classes=classes, channels=channels, size=size, options=inner, base=base
        )
        if kind == "slimmed":
            return thin(whole, arguments.pop("layers", {}))
        return factorize(whole, arguments.pop("ranks", {}))
    file, separator, factory = architecture.rpartition(":")
    if not separator or not file.endswith(".py") or not factory.isidentifier():
        raise UsageError(f'architecture "{architecture}" has no known form: expected {FORMS}')
    path = Path(file) if base is None else base / file
    with _importable(path.resolve().parent):
        return _call(architecture, lambda: _load_factory(path, factory)(**arguments))


def is_code(architecture: str) -> bool:
    """Return whether building the architecture runs a Python file of the user's."""
    return not architecture.startswith(("zoo:", "torchvision:")) and ".py:" in architecture


def _build_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"closest: {', '.join(close)}; " if close else ""
        raise UsageError(
            f'torchvision has no classifier "{name}"; {hint}'
            "see torchvision.models.list_models(module=torchvision.models)"
        )
    if arguments.pop("weights", None) is not None or arguments.pop("pretrained", False):
        raise UsageError(
            f'architecture "torchvision:{name}": the option "weights" would download; '
            "the weights come from the teacher's file"
        )
    if name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", False)  # slow, and the weights are read from a file
    return _call(
        f"torchvision:{name}", lambda: torchvision.models.get_model(name, weights=None, **arguments)
    )


def _call(architecture: str, build: Callable[[], Any]) -> nn.Module:
    try:
        network = build()
    except HydistillError:
        raise
    except (Exception, SystemExit) as error:  # a training script may end the process
        raise TeacherError(
            f'architecture "{architecture}" cannot be built: {type(error).__name__}: {error}; '
            "check the options, which are its factory's keyword arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise TeacherError(
            f'architecture "{architecture}" returned {type(network).__name__}: '
            "expected a factory that returns a torch.nn.Module"
        )
    return network


def _load_factory(path: Path, name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such file; expected the Python file of the architecture"
        )
    module = _run_file(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise TeacherError(
            f'{path}: has no factory "{name}"; it defines: {", ".join(known) or "nothing"}'
        )
    result: Callable[..., Any] = factory
    return result


def _run_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that it shadows no other module."""
    resolved = path.resolve()
    name = f"hydistill_edge_user_{resolved.stem}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise TeacherError(f"{path}: Python cannot import this file; expected a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, as when it is run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _rename(arguments: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in arguments.items()}
