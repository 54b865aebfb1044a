"""Review: the images of a pool that people should look at, and what they decide.

`write_review` puts a sheet of images into `RUN/review/`: those whose score lies nearest to the bar
of their class, and some selected ones of the rarest classes, whose bar is next to nothing.
`take_decisions` reads the decisions back. Accepted and rejected images wait for the next build;
deleted ones leave the run's transfer set at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.atomic import write_text
from hydistill_edge.errors import MissingFileError, RunDirectoryError, UsageError
from hydistill_edge.images.decisions import Decisions, read_decisions, write_decisions
from hydistill_edge.images.deletion import Deleted, delete_images
from hydistill_edge.images.provenance import HASH_PREFIX, exclusions_of
from hydistill_edge.images.transfer_set import TransferSet
from hydistill_edge.report.review_page import Group, Tile, picture, render_review
from hydistill_edge.run_directory import RunDirectory, read_json, write_json

FOLDER = "review"
PAGE = "review.html"
SHEET = "sheet.csv"
DECISIONS = "decisions.json"
EXCLUDE = "exclude.txt"

BORDERLINE = 100
RAREST = 3
PER_RARE_CLASS = 20
"""Images of a class with next to no bar that a person should see in each stage."""

_LISTED = 5


@dataclass(frozen=True)
class Queued:
    """One image that a person should decide on.

    Attributes:
        id: of the image.
        why: `borderline`, or `rare class`.
        class_name: the class that teacher and student take it for.
        confidence: of that class, in [0, 1].
        threshold: that the confidence must exceed to be selected.
        selected: whether it was, in the last epoch.
        times: in how many epochs it was.
        origin: real, web, synthetic, derived or procedural.
        address: where it was found.
        licence: the note that stays with it.
        sha256: of its pixels.
    """

    id: str
    why: str
    class_name: str
    confidence: float
    threshold: float
    selected: bool
    times: int
    origin: str
    address: str
    licence: str
    sha256: str


@dataclass(frozen=True)
class Sheet:
    """What was written for people to look at."""

    page: Path
    sheet: Path
    queue: tuple[Queued, ...]
    decided: int


@dataclass(frozen=True)
class Outcome:
    """What became of the decisions.

    Attributes:
        accepted: images that will always be selected, earlier decisions included.
        rejected: images that will never be.
        deleted: images that left the transfer set now.
        precision: share of accepted images among the selected ones that were looked at, by class;
            None where none was.
        file: all decisions up to now, for `training.decisions` of the recipe.
        exclude: what was deleted up to now, for `exclude` of an image source; None if nothing was.
    """

    accepted: int
    rejected: int
    deleted: tuple[str, ...]
    precision: dict[str, float | None]
    file: Path
    exclude: Path | None


def write_review(run: Path, *, count: int = BORDERLINE) -> Sheet:
    """Write the sheet of a run: an HTML page with pictures, and a CSV to fill in.

    Args:
        run: a run directory whose student was trained by method kd3.
        count: borderline images; images that were decided on before are left out.

    Raises:
        MissingFileError: no run directory, or the run has no selection.
        RunDirectoryError: its transfer set holds none of the images.
        UsageError: a count below 1.
    """
    if count < 1:
        raise UsageError(f"{count} images to review; expected at least 1")
    audit, transfer = _audit(run), TransferSet.open(run / "transfer")
    images = _Images(audit)
    decided = _decided(run)
    open_ = ~np.isin(images.ids, list(decided.by_id))
    border = _borderline(images, open_, count)
    rare = _rare(images, open_, audit["epochs"][-1])
    places = {name: place for place, name in enumerate(transfer.ids)}
    queue = [
        item
        for why, chosen in (("borderline", border), ("rare class", rare))
        for item in (_queued(images, place, why, transfer, places) for place in chosen)
        if item is not None
    ]
    if not queue and not decided.by_id:
        raise RunDirectoryError(
            f"{run}: the transfer set holds none of the images that were selected from; build again"
        )
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    command = f"hydistill review {run} --decisions decisions.csv"
    groups = _groups(queue, transfer, places)
    notes = [f"{len(queue)} images to decide on; {len(decided.by_id)} were decided before."]
    notes += [f"Note: {note}." for note in audit["epochs"][-1]["notes"]]
    page = render_review(groups, name=run.resolve().name, notes=notes, command=command)
    write_text(folder / PAGE, page)
    write_decisions(folder / SHEET, [asdict(item) for item in queue])
    return Sheet(folder / PAGE, folder / SHEET, tuple(queue), len(decided.by_id))


def take_decisions(run: Path, file: Path) -> Outcome:
    """Take over what people decided; a later decision on an image replaces the earlier one.

    Args:
        run: the run directory that the sheet was written for.
        file: the filled CSV, or JSON.

    Raises:
        MissingFileError: no such file, no run directory, or the run has no selection.
        UsageError: a file that cannot be read, or ids that the run does not know.
        RunDirectoryError: a build is working in the run directory.
    """
    images = _Images(_audit(run))
    given = read_decisions(file)
    earlier = _decided(run)
    known = {*images.ids.tolist(), *earlier.by_id}
    unknown = [name for name in given.by_id if name not in known]
    if unknown:
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        raise UsageError(
            f"{file}: {run} knows no image {', '.join(unknown[:_LISTED])}{more}; expected ids of "
            f"{run / FOLDER / SHEET}"
        )
    decisions = Decisions({**earlier.by_id, **given.by_id})
    with RunDirectory(run):
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        # Written first: a kill after this loses no decision, and the next call deletes.
        write_json(folder / DECISIONS, dict(sorted(decisions.by_id.items())))
        deleted = Deleted([], [], 0)
        if decisions.ids("delete"):
            # Several students may share the set: what is deleted has left all of their runs.
            transfer = (run / "transfer").resolve()
            deleted = delete_images(transfer, exclusions_of(decisions.ids("delete")))
        exclude = _write_exclusions(folder / EXCLUDE, decisions, deleted)
    return Outcome(
        accepted=len(decisions.ids("accept")),
        rejected=len(decisions.ids("reject")),
        deleted=tuple(deleted.ids),
        precision=_precision(images, decisions),
        file=folder / DECISIONS,
        exclude=exclude,
    )


class _Images:
    """The columns of an audit record."""

    def __init__(self, audit: dict[str, Any]) -> None:
        columns = audit["images"]
        self.class_names: list[str] = audit["classes"]
        self.ids: NDArray[np.object_] = np.array(columns["id"], object)
        self.classes = np.array(columns["class"], np.int64)
        self.confidences = np.array(columns["confidence"], np.float64)
        self.thresholds = np.array(columns["threshold"], np.float64)
        self.selected = np.array(columns["selected"], np.bool_)
        self.times = np.array(columns["times"], np.int64)

    def __len__(self) -> int:
        return len(self.ids)


def _audit(run: Path) -> dict[str, Any]:
    if not RunDirectory.is_run(run):
        raise MissingFileError(f"{run} is no run directory; `hydistill build` makes one")
    path = run / "student" / "selection.json"
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist: only method kd3 selects images; build with it first"
        )
    audit: dict[str, Any] = read_json(path)
    return audit


def _decided(run: Path) -> Decisions:
    path = run / FOLDER / DECISIONS
    return read_decisions(path) if path.is_file() else Decisions()


def _borderline(images: _Images, open_: NDArray[np.bool_], count: int) -> list[int]:
    """Return the images nearest to the bar of their class."""
    distance = np.abs(images.confidences - images.thresholds)
    order = np.lexsort((np.arange(len(images)), distance))
    chosen: list[int] = order[open_[order]][:count].tolist()
    return chosen


def _rare(images: _Images, open_: NDArray[np.bool_], epoch: dict[str, Any]) -> list[int]:
    """Return selected images of the rarest classes, from all over their scores."""
    predicted = np.array([entry["predicted"] for entry in epoch["per_class"]])
    rarest = [place for place in np.argsort(predicted, kind="stable") if predicted[place]][:RAREST]
    chosen: list[int] = []
    for place in rarest:
        inside = np.flatnonzero(open_ & images.selected & (images.classes == place))
        inside = inside[np.argsort(images.confidences[inside], kind="stable")]
        spread = np.linspace(0, len(inside) - 1, min(PER_RARE_CLASS, len(inside)))
        chosen += inside[spread.astype(np.int64)].tolist()
    return chosen


def _queued(
    images: _Images, place: int, why: str, transfer: TransferSet, places: dict[str, int]
) -> Queued | None:
    """Return what is known of an image, None where it has left the transfer set."""
    name = str(images.ids[place])
    row = places.get(name)
    if row is None:
        return None
    return Queued(
        id=name,
        why=why,
        class_name=images.class_names[images.classes[place]],
        confidence=float(images.confidences[place]),
        threshold=float(images.thresholds[place]),
        selected=bool(images.selected[place]),
        times=int(images.times[place]),
        origin=str(transfer.origins[row]),
        address=transfer.addresses[row],
        licence=str(transfer.licences[row]),
        sha256=transfer.hashes[row].tobytes().hex(),
    )


def _groups(queue: Sequence[Queued], transfer: TransferSet, places: dict[str, int]) -> list[Group]:
    titles = {
        "borderline": (
            "Borderline images",
            "Their score lies nearest to the bar of their class, on either side.",
        ),
        "rare class": (
            "Selected images of the rarest classes",
            "The bar of a rare class is next to nothing, so nearly all that is taken for it is "
            "selected. The share that you accept is the precision of the selection there.",
        ),
    }
    groups, seen = [], set[str]()
    for why, (title, text) in titles.items():
        items = [item for item in queue if item.why == why and item.id not in seen]
        seen |= {item.id for item in items}
        tiles = [_tile(item, transfer.images([places[item.id]])[0]) for item in items]
        if tiles:
            groups.append(Group(title, text, tuple(tiles)))
    return groups


def _tile(item: Queued, image: NDArray[np.uint8]) -> Tile:
    return Tile(
        item.id,
        picture(image),
        item.class_name,
        item.confidence,
        item.threshold,
        item.selected,
        {
            "origin": item.origin,
            "epochs selected": str(item.times),
            "address": item.address,
            "licence": item.licence,
            "sha256": item.sha256[:16],
        },
    )


def _precision(images: _Images, decisions: Decisions) -> dict[str, float | None]:
    """Return the share of accepted images among selected ones that were decided on, by class."""
    good = np.isin(images.ids, decisions.ids("accept"))
    looked_at = np.isin(images.ids, list(decisions.by_id)) & images.selected
    found: dict[str, float | None] = {}
    for place, name in enumerate(images.class_names):
        inside = looked_at & (images.classes == place)
        found[name] = float(good[inside].mean()) if inside.any() else None
    return found


def _write_exclusions(path: Path, decisions: Decisions, deleted: Deleted) -> Path | None:
    """Add what was deleted to the list; return its path, None where nothing ever was."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # An odd file name is no text; its hash stands for it.
    names = [name for name in decisions.ids("delete") if name.isprintable()]
    wanted = [*names, *(f"{HASH_PREFIX}{digest}" for digest in deleted.hashes)]
    lines += [line for line in wanted if line not in lines]
    if not lines:
        return None
    write_text(path, "\n".join(lines) + "\n")
    return path
