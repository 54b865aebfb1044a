"""Deletion: images leave a transfer set for good, and what is left is a whole set again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import TransferSetError
from hydistill_edge.images.provenance import Exclusions
from hydistill_edge.images.transfer_set import Indices, TransferSet, TransferSetWriter

BATCH = 4096


@dataclass(frozen=True)
class Deleted:
    """What a deletion did.

    Attributes:
        ids: of the images that are gone.
        hashes: their content hashes (hex), so that they can be kept out from now on.
        left: images that are left.
    """

    ids: list[str]
    hashes: list[str]
    left: int


def delete_images(folder: Path, exclusions: Exclusions) -> Deleted:
    """Write the set anew without some images, and remove every byte of the old one.

    Args:
        folder: of the transfer set.
        exclusions: which images go: by id, by address or by content hash.

    Raises:
        MissingFileError: there is no such folder.
        TransferSetError: it is no whole transfer set, or nothing would be left of it.
        NoSpaceError: the disk is full; the set is as it was.
    """
    folder = Path(folder)
    kept, gone = (folder.with_name(f".{folder.name}.{word}") for word in ("kept", "gone"))
    if kept.is_dir() and gone.is_dir() and not folder.exists():  # killed between two renames
        kept.rename(folder)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.rmtree(gone, ignore_errors=True)
    transfer = TransferSet.open(folder)
    barred = _barred(transfer, exclusions)
    rows = np.flatnonzero(~barred)
    deleted = Deleted(
        transfer.ids.take(np.flatnonzero(barred)),
        [digest.tobytes().hex() for digest in transfer.hashes[barred]],
        len(rows),
    )
    if not deleted.ids:
        return deleted
    if not len(rows):
        raise TransferSetError(
            f"{folder}: all {len(transfer)} images would be deleted; remove the folder instead"
        )
    _write(transfer, rows, kept, deleted=len(deleted.ids))
    folder.rename(gone)
    kept.rename(folder)
    shutil.rmtree(gone)
    return deleted


def _barred(transfer: TransferSet, exclusions: Exclusions) -> NDArray[np.bool_]:
    addresses = transfer.addresses
    return np.array(
        [
            exclusions.has(identity, addresses[place])
            or exclusions.has_hash(transfer.hashes[place])
            for place, identity in enumerate(transfer.ids)
        ],
        np.bool_,
    )


def _write(transfer: TransferSet, rows: Indices, folder: Path, *, deleted: int) -> None:
    manifest = transfer.manifest
    details = dict(manifest["details"])
    details["deleted"] = int(details.get("deleted", 0)) + deleted
    with TransferSetWriter(
        folder,
        size=transfer.size,
        channels=transfer.channels,
        classes=transfer.classes,
        teacher_digest=manifest["teacher"]["digest"],
        method=manifest["method"],
        seeds=manifest["seeds"],
        details=details,
        logits_dtype=manifest["logits_dtype"],
    ) as writer:
        for part in _runs(transfer, rows):
            writer.add(
                transfer.images(part),
                transfer.logits(part),
                origin=str(transfer.origins[part[0]]),  # type: ignore[arg-type]
                ids=transfer.ids.take(part),
                labels=transfer.labels[part],
                licence=transfer.licences[part].tolist(),
                may_ship=transfer.may_ship[part].tolist(),
                addresses=transfer.addresses.take(part),
            )


def _runs(transfer: TransferSet, rows: Indices) -> list[Indices]:
    """Cut rows into batches of one origin each, in order."""
    origins = transfer.origins[rows]
    cuts = np.flatnonzero(origins[1:] != origins[:-1]) + 1
    return [
        run[start : start + BATCH]
        for run in np.split(rows, cuts)
        for start in range(0, len(run), BATCH)
    ]
