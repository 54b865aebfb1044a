"""The TransferSet's format: names, types and the manifest that its writer and reader share.

A folder:

    manifest.json               what is in it, and the digest of all of it
    shard-00000.safetensors     about 64 MiB of images with everything known about each
    shard-00001.safetensors     ...

Each shard holds, for its n images, the tensors of `shard_layout`. `shard_bytes` apart, equal
images in equal order give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from hydistill_edge.errors import TransferSetError

SCHEMA_VERSION = 1
KIND = "hydistill-transfer-set"
MANIFEST = "manifest.json"
SHARD_BYTES = 64 * 2**20

Origin = Literal["real", "web", "synthetic", "derived", "procedural"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
"""Where an image can come from; a shard stores the place in this list."""

REAL_ORIGINS: tuple[Origin, ...] = ("real", "web")
"""Images that were taken. The others were made: `synthetic` ones from a network, `derived` ones
from real images and a tensor, `procedural` ones from formulas."""

LogitsDtype = Literal["float32", "float16"]

UNKNOWN_LABEL = -1


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.safetensors"


def shard_layout(
    count: int, *, size: tuple[int, int], channels: int, classes: int, logits_dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor of a shard, except packed strings' bytes.

    Tensors: `images` (n, H, W, C) pixels; `logits` (n, classes) of the teacher; `pseudo_labels`
    their argmax; `confidences` the softmax at it; `labels` the true ones, -1 where unknown;
    `origins` and `licences` places in `ORIGINS` and in the manifest's list; `may_ship` 0 or 1;
    `hashes` sha256 of the pixels; `id_offsets` and `id_bytes` the packed source ids. A shard in
    which any image has a source address also has `address_offsets` and `address_bytes`.
    """
    return {
        "images": ("uint8", (count, *size, channels)),
        "logits": (logits_dtype, (count, classes)),
        "pseudo_labels": ("int32", (count,)),
        "confidences": ("float32", (count,)),
        "labels": ("int32", (count,)),
        "origins": ("uint8", (count,)),
        "licences": ("uint16", (count,)),
        "may_ship": ("uint8", (count,)),
        "hashes": ("uint8", (count, 32)),
        "id_offsets": ("int64", (count + 1,)),
    }


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 of the manifest without its digest and the name of the program's version.

    The shards' digests stand in the manifest, so this is the digest of the whole set.
    """
    rest = {key: value for key, value in manifest.items() if key not in ("digest", "created_by")}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(text: bytes, *, where: str) -> dict[str, Any]:
    """Return a manifest that has been checked.

    Args:
        text: the file's bytes.
        where: what errors call the file.

    Raises:
        TransferSetError: not JSON, not a transfer set's, of another schema version, or altered.
    """
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TransferSetError(
            f"{where}: not JSON ({error}); the transfer set is torn, build it again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise TransferSetError(f'{where}: not the manifest of a transfer set (no "kind": "{KIND}")')
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise TransferSetError(
            f"{where}: schema version {version}, written by {manifest.get('created_by')}; this "
            f"program reads version {SCHEMA_VERSION}; build the set again, or use that program"
        )
    problems = _problems(manifest)
    if problems:
        raise TransferSetError(f"{where}: altered or incomplete: {'; '.join(problems)}")
    if manifest_digest(manifest) != manifest["digest"]:
        raise TransferSetError(
            f"{where}: its digest does not fit its contents, so it was altered; build the set again"
        )
    return manifest


def _problems(manifest: Mapping[str, Any]) -> list[str]:
    types: dict[str, type] = {
        "height": int,
        "width": int,
        "channels": int,
        "classes": list,
        "licences": list,
        "count": int,
        "shards": list,
        "digest": str,
    }
    wrong = [key for key, kind in types.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        return [f'"{key}" is missing or of the wrong type' for key in wrong]
    if manifest.get("logits_dtype") not in get_args(LogitsDtype):
        return [f'"logits_dtype" is {manifest.get("logits_dtype")!r}']
    return _shard_problems(manifest["shards"], manifest["count"])


def _shard_problems(shards: Sequence[Any], count: int) -> list[str]:
    types = {"file": str, "count": int, "size": int, "sha256": str}
    for index, shard in enumerate(shards):
        whole = isinstance(shard, dict) and all(
            isinstance(shard.get(key), kind) for key, kind in types.items()
        )
        # The name is ours, so a manifest can never point out of its folder.
        if not whole or shard["file"] != shard_name(index) or shard["count"] < 1:
            return [f"entry {index} of the shard list is not {shard_name(index)} with its facts"]
    if sum(shard["count"] for shard in shards) != count or count < 1:
        return [f"the shards do not hold the {count} images stated"]
    return []
