"""Content hash: the sha256 of an image's pixels, which says that two images are the same image.

Subsets (calibration, parity, golden images) are disjoint by this hash, whatever the file names.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 32

Hashes = NDArray[np.uint8]
"""Content hashes, shape (N, 32) uint8."""


def content_hashes(images: NDArray[np.uint8]) -> Hashes:
    """Return the sha256 of each image's bytes in (H, W, C) order.

    Args:
        images: shape (N, H, W, C) uint8.

    Returns:
        Shape (N, 32) uint8.
    """
    digests = b"".join(
        hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in np.asarray(images)
    )
    return np.frombuffer(digests, np.uint8).reshape(len(images), HASH_BYTES)
