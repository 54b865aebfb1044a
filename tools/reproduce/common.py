"""What the scripts of this folder share: data files, pieces of time, step rates and results.

Nothing here is of one method, and nothing is downloaded. A script keeps all that it made in its
work folder: called again with the same arguments, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hydistill_edge.errors import HydistillError, MissingFileError, UsageError
from hydistill_edge.images.readers import open_npz
from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.images.transfer_format import Origin
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.training.loop import Progress

UNFINISHED = 10
"""Exit code where the minutes were up before the work: run the same command again."""

PROBE_STEPS = 200
"""Steps of each phase that a step rate is measured on, behind a warm-up of a tenth of them."""

RESULTS = Path(__file__).parent / "results"

SPECS = {
    # Mean and standard deviation of the training split, in pixels of [0, 1].
    "CIFAR10": InputSpec(32, 32, 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": InputSpec(32, 32, 3, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}

_TORCHVISION = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}
_ASK = 1000

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: shape (N, H, W, C) uint8.
        labels: shape (N,) int64.
        class_names: what the labels mean.
    """

    images: Images
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Labels) -> Split:
        """Return some of the images."""
        return Split(self.images[rows], self.labels[rows], self.class_names)


def read_split(data: Path, dataset: str, *, train: bool) -> Split:
    """Read CIFAR-10 or CIFAR-100 from a local folder.

    Args:
        data: a folder with `train.npz` and `test.npz` (or parts, `train-0.npz`, `train-1.npz`),
            each with `images` or `images_delta`, `labels` and `class_names`; or the folder that
            holds torchvision's copy (`cifar-10-batches-py`, `cifar-100-python`), which torchvision
            itself reads.
        dataset: a key of `SPECS`.
        train: the training split, else the test split.

    Raises:
        MissingFileError: neither is there.
        ImageSourceError: what is there is broken.
    """
    name = "train" if train else "test"
    parts = sorted(data.glob(f"{name}.npz")) or sorted(data.glob(f"{name}-*.npz"))
    if parts:
        readers = [open_npz(part, use_labels=True) for part in parts]
        names = readers[0].class_names
        found = [(reader.images, reader.labels) for reader in readers]
        labelled = [(images, labels) for images, labels in found if labels is not None]
        if names is None or len(labelled) < len(parts):
            raise UsageError(
                f"{parts[0]}: no labels or no class_names in it; expected images (N, 32, 32, 3) "
                "uint8, labels (N,) int64 and class_names"
            )
        return Split(
            np.concatenate([images for images, _ in labelled]),
            np.concatenate([labels for _, labels in labelled]).astype(np.int64),
            names,
        )
    if (data / _TORCHVISION[dataset]).is_dir():
        spec = SourceSpec(
            "torchvision", data, dataset=dataset, options={"train": train}, use_labels=True
        )
        loaded = load_source(spec)
        assert loaded.labels is not None  # the source says use_labels
        return Split(loaded.images, loaded.labels, loaded.class_names or ())
    raise MissingFileError(
        f"{data}: no {name}.npz, no {name}-*.npz and no {_TORCHVISION[dataset]} in it; nothing is "
        f"downloaded: put {dataset} there as NumPy archives or as torchvision keeps it"
    )


def read_pool(path: Path, *, size: tuple[int, int], limit: int | None = None) -> Images:
    """Read a user's own pool of unlabelled images: a folder, an npz file or tar shards.

    Args:
        path: where it lies.
        size: (height, width) that images of another size are brought to.
        limit: at most so many.

    Returns:
        Shape (N, height, width, 3) uint8.

    Raises:
        MissingFileError: nothing is there.
        ImageSourceError: it is broken.
    """
    if path.suffix == ".npz" and limit is None:
        images = open_npz(path, use_labels=False).images
        if images.shape[1:] == (*size, 3):
            return images
    kinds = {".npz": "npz", ".safetensors": "safetensors", ".tar": "shards"}
    kind: Any = kinds.get(path.suffix, "folder")
    spec = SourceSpec(kind, path, limit=limit, on_corrupt="skip")
    return load_source(spec, size=size, channels=3, adapt=True).images


def write_transfer(
    folder: Path,
    teacher: Teacher,
    parts: Sequence[tuple[Images, Origin]],
    *,
    method: str,
) -> TransferSet:
    """Write images with the teacher's logits as a transfer set; take the one that is there.

    Args:
        folder: of the set.
        teacher: on its device; asked about every image.
        parts: images (N, H, W, 3) uint8, and where they come from.
        method: noted in the manifest.
    """
    if not folder.exists():
        size = (parts[0][0].shape[1], parts[0][0].shape[2])
        with TransferSetWriter(
            folder,
            size=size,
            channels=3,
            classes=teacher.classes,
            teacher_digest=teacher.digest,
            method=method,
        ) as writer:
            for number, (images, origin) in enumerate(parts):
                ids = [f"{number}-{origin}-{row:07d}" for row in range(len(images))]
                writer.add(images, ask(teacher, images), origin=origin, ids=ids)
    return TransferSet.open(folder)


@torch.no_grad()
def ask(network: nn.Module, images: Images) -> NDArray[np.float32]:
    """Return a network's logits of uint8 images (N, H, W, C), shape (N, classes), in eval mode."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(images), _ASK):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + _ASK]))
        parts.append(network(pixels.to(device).permute(0, 3, 1, 2)).float().cpu().numpy())
    return np.concatenate(parts)


def accuracy(network: nn.Module, split: Split) -> float:
    """Return the share of images that a network names right."""
    return float((ask(network, split.images).argmax(axis=1) == split.labels).mean())


def hold_out(labels: Labels, count: int, *, seed: int) -> tuple[Labels, Labels]:
    """Return the rows to keep and `count` rows to hold out, as many of each class as possible.

    Args:
        labels: shape (N,).
        count: rows held out, in [1, N).
        seed: of the choice.
    """
    if not 0 < count < len(labels):
        raise UsageError(
            f"{count} images to hold out of {len(labels)}; expected at least 1 and fewer than all"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    # The first of every class, then the second of every class, and so on.
    rank = np.empty(len(labels), np.int64)
    for place in np.unique(labels):
        rows = order[labels[order] == place]
        rank[rows] = np.arange(len(rows))
    ranked = order[np.argsort(rank[order], kind="stable")]
    return np.sort(ranked[count:]), np.sort(ranked[:count])


class PieceOver(BaseException):
    """The minutes of this call are up; nothing may catch it as a fault of its own."""


@contextmanager
def piece(minutes: float | None) -> Iterator[None]:
    """Stop what runs inside after so many minutes, wherever it is; None never does.

    Whatever trains writes a checkpoint every few seconds, which a stop at any moment leaves whole.

    Raises:
        PieceOver: the minutes are up.
    """
    if minutes is None:
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise PieceOver

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Work:
    """A folder that holds the parts of one run, so that it can be done in pieces.

    Used in a `with` block, it adds up the wall time of all pieces.

    Args:
        folder: made where it is missing.
        facts: all that the results depend on, as plain values.

    Raises:
        UsageError: the folder is of a run with other facts.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self._started = time.monotonic()
        plain = json.loads(json.dumps(dict(facts)))
        known = folder / "run.json"
        if known.exists():
            earlier = json.loads(known.read_text(encoding="utf-8"))
            other = [name for name in plain if plain[name] != earlier.get(name)]
            if other or len(earlier) != len(plain):
                raise UsageError(
                    f"{folder}: is of a run with another {', '.join(other) or 'set of arguments'}; "
                    "give the same arguments, or another --work"
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_json(known, plain)

    def __enter__(self) -> Work:
        self._started = time.monotonic()
        return self

    def __exit__(self, *_error: object) -> None:
        write_json(self.folder / "wall.json", {"seconds": self.wall_s})
        self._started = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Wall time of all pieces until now, that of reading data and compiling included."""
        path = self.folder / "wall.json"
        before = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else 0.0
        return float(before) + time.monotonic() - self._started

    def part(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `make` returned, now or in an earlier call.

        Args:
            name: of the part; also that of its folder.
            make: does the work in its folder and returns plain values. After a stop it is called
                again, and goes on from the checkpoints that lie there.
        """
        folder = self.folder / name
        done = folder / "done.json"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(done, dict(make(folder)))
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return found


class Enough(BaseException):
    """A training has been timed; it ends here, with nothing kept."""


class Pace:
    """Times a training from its first report on, as its `progress`, and ends it after some steps.

    Args:
        steps: to time, behind the first report.
    """

    def __init__(self, steps: int) -> None:
        self._wanted = steps
        self._first: tuple[int, float, float] | None = None
        self.steps = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Note the time; see `hydistill_edge.training.loop.Progress`.

        Raises:
            Enough: the steps are timed.
        """
        del total, metrics
        now, cpu = time.perf_counter(), time.process_time()
        if self._first is None:
            self._first = (done, now, cpu)
            return
        first, started, spent = self._first
        self.steps, self.seconds, self.cpu_seconds = done - first, now - started, cpu - spent
        if self.steps >= self._wanted:
            raise Enough


@dataclass(frozen=True)
class Phase:
    """What one phase of a run costs, by a few of its steps.

    Attributes:
        name: of the phase.
        steps: that were timed, after the warm-up.
        seconds: that they took.
        cpu_seconds: of the processor in that time; less where other work was in the way.
        batch: images per step.
        planned_steps: of the whole phase, as the schedule has it.
    """

    name: str
    steps: int
    seconds: float
    cpu_seconds: float
    batch: int
    planned_steps: int

    def projected_s(self, device: torch.device) -> float:
        """Return the seconds that the whole phase would take on a machine with no other work.

        A CPU's own time counts, shared by its threads; a GPU is taken to be ours alone.
        """
        seconds = self.seconds
        if device.type == "cpu":
            seconds = self.cpu_seconds / torch.get_num_threads()
        return self.planned_steps * seconds / self.steps

    def to_dict(self, device: torch.device) -> dict[str, Any]:
        """Return plain values."""
        return {
            "phase": self.name,
            "steps_timed": self.steps,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "batch": self.batch,
            "steps_per_s": round(self.steps / self.seconds, 4),
            "planned_steps": self.planned_steps,
            "projected_s": round(self.projected_s(device)),
        }


def time_training(
    name: str,
    start: Callable[[Progress, int], object],
    *,
    steps: int,
    batch: int,
    planned_steps: int,
) -> Phase:
    """Time a training: the first steps pass as a warm-up, then so many are timed, then it ends.

    Args:
        name: of the phase.
        start: begins a training with this `progress` and this number of steps, of which a small
            part is done; both the loop's reports and its reading of the loss are a hundredth apart.
        steps: to time.
        batch: images per step.
        planned_steps: of the whole phase.
    """
    pace = Pace(steps)
    with suppress(Enough):
        start(pace, 100 * max(1, steps // 10))
    return Phase(name, pace.steps, pace.seconds, pace.cpu_seconds, batch, planned_steps)


def time_steps(
    name: str,
    step: Callable[[], object],
    *,
    steps: int,
    batch: int,
    planned_steps: int,
    device: torch.device,
) -> Phase:
    """Time calls of a function, the device's work included, after a warm-up."""
    for _ in range(max(1, steps // 10)):
        step()
    wait_for(device)
    started, spent = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wait_for(device)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    return Phase(name, steps, seconds, cpu, batch, planned_steps)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def projection(phases: Sequence[Phase], device: torch.device) -> dict[str, Any]:
    """Return the phases, and what all of them would cost together."""
    total = sum(phase.projected_s(device) for phase in phases)
    basis = "processor time over threads" if device.type == "cpu" else "wall time"
    return {
        "projection": True,
        "projected_from": basis,
        "phases": [phase.to_dict(device) for phase in phases],
        "projected_total_s": round(total),
        "projected_total_h": round(total / 3600, 2),
        "projection_note": (
            "steps of each phase were timed after a warm-up and multiplied by the steps that the "
            "schedule has; hold-outs, checkpoints and compiling are not in it, and no accuracy was "
            "measured"
        ),
    }


def arguments(description: str, *, dataset: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {dataset}")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--out", type=Path, help="result file; default in results/")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default a GPU if any")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after so long; run again to go on")
    schedule = parser.add_mutually_exclusive_group()
    schedule.add_argument("--fast", action="store_true", help="our own short schedule")
    schedule.add_argument("--smoke", action="store_true", help="tiny networks, a few steps")
    parser.add_argument(
        "--probe",
        type=int,
        nargs="?",
        const=PROBE_STEPS,
        help="time so many steps of each phase, and project what the whole would cost",
    )
    return parser


def schedule_of(given: argparse.Namespace) -> str:
    """Return the name of the schedule that was asked for."""
    return "fast" if given.fast else "smoke" if given.smoke else "published"


def pick_device(name: str) -> torch.device:
    """Return a device by name; `auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f'device "{name}": this torch sees no GPU; expected "cpu" or "auto"')
    return torch.device(name)


def conditions(device: torch.device) -> dict[str, Any]:
    """Return what a time must be read with."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "gpu_peak_memory_mib": (
            torch.cuda.max_memory_allocated(device) // 2**20 if gpu is not None else None
        ),
        "cuda": torch.version.cuda if gpu is not None else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def result_path(given: argparse.Namespace, name: str) -> Path:
    """Return where the result goes: as asked, or `results/<name>-<schedule>[-probe]-<device>`."""
    if given.out is not None:
        return Path(given.out)
    device = pick_device(given.device).type
    probe = "-probe" if given.probe else ""
    return RESULTS / f"{name}-{schedule_of(given)}{probe}-{device}.json"


def write_result(path: Path, values: Mapping[str, Any], *, device: torch.device) -> None:
    """Write a result with its conditions, and print it."""
    whole = {"schema_version": 1, "projection": False, **values, "conditions": conditions(device)}
    write_json(path, whole)
    print(json.dumps(whole, indent=2))


def tell(name: str) -> Progress:
    """Return a `progress` that prints a line a report, on stderr."""

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        shown = " ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        print(f"{name} {done}/{total} {shown}", file=sys.stderr, flush=True)

    return progress


def run_script(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> int:
    """Parse, run within the minutes given, and return the exit code."""
    given = parser.parse_args()
    try:
        with piece(given.minutes):
            main(given)
    except PieceOver:
        print(f"{given.minutes:g} minutes are up; run the same command again", file=sys.stderr)
        return UNFINISHED
    except HydistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
