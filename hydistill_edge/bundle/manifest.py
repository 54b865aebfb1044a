"""The manifest: what a bundle is and what it holds, as one strict JSON file.

Standard library only, because the device reads it before anything else. Parsing is strict: unknown,
missing and wrong-typed fields are refused together in one message, so is any text that is not
exactly what `Manifest.to_json` writes. One manifest therefore has one byte form.

What protects what: the manifest's SHA-256 digests protect every other file; the manifest itself is
protected by the archive's checksum against accidents, and against people by the signature over the
whole bundle.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hydistill_edge.bundle.strict_json import load_json, parse, refuse
from hydistill_edge.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

TARGETS = ("onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ORIGINS = ("real", "web", "synthetic", "derived", "procedural")
EVIDENCE = ("parity", "latency", "calibration", "evaluation", "provenance")

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Control characters, line separators, lone surrogates and bidirectional overrides: what would let a
# manifest write to the terminal that shows it.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True)
class BundledFile:
    """One file of the bundle: where it is, what it weighs, what it is for (see `role_of`)."""

    path: str
    sha256: str
    size: int
    role: str


@dataclass(frozen=True)
class InputFormat:
    """What the graph takes: uint8 pixels, shape (N, height, width, channels), after `resize`."""

    height: int
    width: int
    channels: int
    resize: str


@dataclass(frozen=True)
class GoldenImage:
    """One golden image: a PNG whose logits are known."""

    path: str
    id: str
    origin: str


@dataclass(frozen=True)
class Golden:
    """The golden images and their logits.

    Attributes:
        images: in the order of the logits' rows.
        student_logits: path of the float student's logits: raw float32, little-endian, row-major,
            shape (images, classes). None where there are no images.
        artifact_logits: the same of this artifact on the build machine; None where it cannot run
            there.
        note: why there are no images, or what else a reader must know.
    """

    images: tuple[GoldenImage, ...]
    student_logits: str | None
    artifact_logits: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Reject:
    """When to say "I do not know": one temperature, one threshold per class.

    A prediction of class c is accepted when its probability, softmax(logits / temperature), is
    strictly greater than `thresholds[c]`; a threshold of 1 therefore never accepts.

    Attributes:
        target_error: the fraction of wrong answers among accepted ones that the fit aimed at.
        fitted_on: what counted as right: "labels" or "teacher".
        n: real hold-out images that were used.
        coverage: fraction of them that is accepted.
        risk: fraction of wrong answers among the accepted; None when nothing is accepted.
        risk_upper: one-sided 95 % upper bound of the risk; None when nothing is accepted.
        pooled: classes with too few images for a threshold of their own; they share one.
        note: how the thresholds came about, in words.
    """

    temperature: float
    thresholds: tuple[float, ...]
    target_error: float
    fitted_on: str
    n: int
    coverage: float
    risk: float | None
    risk_upper: float | None
    pooled: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Digests:
    """SHA-256 (hex) of what the artifact was made from; None where a build has no such thing."""

    student: str
    teacher: str | None = None
    transfer: str | None = None
    graph: str | None = None
    calibration: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything a device must know before it opens the model.

    Attributes:
        entry: path of the file that the runtime opens.
        batch: the graph's fixed batch; None where it is dynamic.
        threads: threads that the device profile runs it with.
        scheme: name of the quantization scheme; None for a float artifact.
        reject_note: why there is no reject rule, where there is none.
        tools: name and version of what made the artifact.
        license: of the student, as its maker states it; empty where not stated.
        files: every file but the manifest, sorted by path; `pack` fills it in.
    """

    name: str
    version: str
    target: str
    device: str
    precision: str
    entry: str
    input: InputFormat
    batch: int | None
    threads: int
    classes: tuple[str, ...]
    golden: Golden
    digests: Digests
    tools: dict[str, str]
    scheme: str | None = None
    reject: Reject | None = None
    reject_note: str = ""
    license: str = ""
    note: str = ""
    files: tuple[BundledFile, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def file(self, path: str) -> BundledFile:
        """Return the entry of one file.

        Raises:
            BundleError: the manifest does not list it.
        """
        for listed in self.files:
            if listed.path == path:
                return listed
        raise BundleError(
            f"the bundle holds no {path!r}; it holds {', '.join(f.path for f in self.files)}"
        )

    def with_role(self, role: str) -> tuple[BundledFile, ...]:
        """Return the files of one role, sorted by path."""
        return tuple(listed for listed in self.files if listed.role == role)

    def to_json(self) -> bytes:
        """Return the one byte form of this manifest.

        Raises:
            BundleError: a value that must not be in a manifest; all problems are listed.
        """
        refuse(list(_value_problems(self)), MANIFEST_NAME)
        text = json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)
        return text.encode("ascii") + b"\n"

    @staticmethod
    def from_json(data: bytes, *, where: str = MANIFEST_NAME) -> Manifest:
        """Parse a manifest.

        Args:
            data: the file's bytes.
            where: what error messages call the file.

        Raises:
            BundleError: not JSON, another schema version, or problems, all of them listed.
        """
        tree = load_json(data, where, limit=MAX_MANIFEST_BYTES)
        _check_version(tree, where)
        problems: list[str] = []
        manifest = parse(Manifest, tree, "", problems)
        refuse(problems, where)
        assert isinstance(manifest, Manifest)
        if manifest.to_json() != data:
            raise BundleError(
                f"{where}: valid, but not written the one way that bundles are written "
                "(sorted keys, one space of indent); it was edited after packing"
            )
        return manifest


def role_of(path: str) -> str:
    """Return what a file is for, from where it stands in the bundle.

    Raises:
        BundleError: a bundle has no such place.
    """
    folder, _, rest = path.partition("/")
    if folder in ("model", "golden") and rest and "/" not in rest:
        return folder
    if folder == "evidence" and rest in {f"{name}.json" for name in EVIDENCE}:
        return "evidence"
    fixed = {"labels.txt": "labels", "device.yaml": "device", "model_card.md": "card"}
    if path in fixed:
        return fixed[path]
    raise BundleError(
        f"{path!r} has no place in a bundle; files stand in model/ and golden/, in evidence/ as "
        f"{', '.join(f'{name}.json' for name in EVIDENCE)}, or are one of {', '.join(fixed)}"
    )


def _check_version(tree: Any, where: str) -> None:
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema version {version}; this program reads version {SCHEMA_VERSION}. "
            "Update hydistill-edge, or pack the bundle again"
        )


def _value_problems(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the values; the types are right by now."""
    if manifest.schema_version != SCHEMA_VERSION:
        yield f"schema_version: {manifest.schema_version}; expected {SCHEMA_VERSION}"
    for key in ("name", "version", "device"):
        if not _NAME.fullmatch(getattr(manifest, key)):
            yield (
                f"{key}: {getattr(manifest, key)!r}; expected 1 to 64 letters, digits, dots, "
                "underscores, hyphens or plus signs, starting with a letter or digit"
            )
    yield from _one_of("target", manifest.target, TARGETS)
    yield from _one_of("precision", manifest.precision, PRECISIONS)
    if manifest.batch is not None and not 1 <= manifest.batch <= 1024:
        yield f"batch: {manifest.batch}; expected 1 to 1024, or null for a dynamic batch"
    if not 1 <= manifest.threads <= 1024:
        yield f"threads: {manifest.threads}; expected 1 to 1024"
    yield from _input_problems(manifest.input)
    yield from _class_problems(manifest.classes)
    yield from _digest_problems(manifest.digests)
    if manifest.reject is not None:
        yield from _reject_problems(manifest.reject, len(manifest.classes))
    yield from _file_problems(manifest)
    yield from _text_problems("", asdict(manifest))
    yield from _golden_problems(manifest)


def _text_problems(where: str, value: Any) -> Iterator[str]:
    """Yield the strings that are not plain text on one line (labels.txt is one name a line)."""
    if isinstance(value, str) and _UNSAFE.search(value):
        yield f"{where}: {value!a}; expected text on one line, without control characters"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _text_problems("a key", key)
            yield from _text_problems(f"{where}.{key}".lstrip("."), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _text_problems(f"{where}[{index}]", item)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    if value not in known:
        yield f"{key}: {value!r}; expected one of {', '.join(known)}"


def _input_problems(shape: InputFormat) -> Iterator[str]:
    for key in ("height", "width"):
        if not 1 <= getattr(shape, key) <= 8192:
            yield f"input.{key}: {getattr(shape, key)}; expected 1 to 8192 pixels"
    if shape.channels not in (1, 3):
        yield f"input.channels: {shape.channels}; expected 1 (grey) or 3 (RGB)"
    if not _NAME.fullmatch(shape.resize):
        yield f"input.resize: {shape.resize!r}; expected the name of a resize rule"


def _class_problems(classes: tuple[str, ...]) -> Iterator[str]:
    if not 2 <= len(classes) <= 100_000:
        yield f"classes: {len(classes)}; expected at least 2 and at most 100000"
    for name, count in Counter(classes).items():
        if count > 1:
            yield f"classes: {name!r} stands there {count} times"
        if not name.strip():
            yield f"classes: {name!r}; expected a name"


def _digest_problems(digests: Digests) -> Iterator[str]:
    for key, value in asdict(digests).items():
        if value is not None and not _SHA256.fullmatch(value):
            yield f"digests.{key}: {value!r}; expected 64 lower-case hex digits"


def _reject_problems(reject: Reject, classes: int) -> Iterator[str]:
    if not (math.isfinite(reject.temperature) and reject.temperature > 0):
        yield f"reject.temperature: {reject.temperature}; expected a finite number above 0"
    if len(reject.thresholds) != classes:
        yield f"reject.thresholds: {len(reject.thresholds)}; expected one per class, {classes}"
    fractions: list[tuple[str, float | None]] = [
        *((f"thresholds[{i}]", value) for i, value in enumerate(reject.thresholds)),
        ("target_error", reject.target_error),
        ("coverage", reject.coverage),
        ("risk", reject.risk),
        ("risk_upper", reject.risk_upper),
    ]
    for key, value in fractions:
        if value is not None and not 0 <= value <= 1:  # a NaN fails too
            yield f"reject.{key}: {value}; expected 0 to 1"
    yield from _one_of("reject.fitted_on", reject.fitted_on, ("labels", "teacher"))
    if reject.n < 1:
        yield f"reject.n: {reject.n}; expected at least 1"


def _file_problems(manifest: Manifest) -> Iterator[str]:
    paths = [listed.path for listed in manifest.files]
    if paths != sorted(set(paths)):
        yield "files: expected each path once, sorted"
    for listed in manifest.files:
        if not _SHA256.fullmatch(listed.sha256):
            yield f"files: {listed.path!r}: sha256 {listed.sha256!r}; expected 64 hex digits"
        if listed.size < 0:
            yield f"files: {listed.path!r}: size {listed.size}; expected 0 or more bytes"
        yield from _role_problems(listed)
    known = set(paths)
    if manifest.entry not in known or not manifest.entry.startswith("model/"):
        yield f"entry: {manifest.entry!r}; expected one of the files in model/"
    yield from (f"files: {path} is missing" for path in ("labels.txt",) if path not in known)


def _role_problems(listed: BundledFile) -> Iterator[str]:
    try:
        role = role_of(listed.path)
    except BundleError as error:
        yield f"files: {error}"
        return
    if listed.role != role:
        yield f"files: {listed.path!r}: role {listed.role!r}; expected {role!r}"


def _golden_problems(manifest: Manifest) -> Iterator[str]:
    golden = manifest.golden
    sizes = {listed.path: listed.size for listed in manifest.with_role("golden")}
    named = [image.path for image in golden.images]
    tables = [path for path in (golden.student_logits, golden.artifact_logits) if path is not None]
    if bool(named) != (golden.student_logits is not None):
        yield "golden: images and student_logits come together"
    if len(set(named + tables)) != len(named + tables):
        yield "golden: a file is named twice"
    for path in (*named, *tables):
        if path not in sizes:
            yield f"golden: {path!r} is not among the files in golden/"
    yield from (
        f"golden: {path!r} is not used" for path in sorted(sizes.keys() - {*named, *tables})
    )
    expected = 4 * len(named) * len(manifest.classes)
    for path in tables:
        if sizes.get(path, expected) != expected:
            yield f"golden: {path!r}: {sizes[path]} bytes; {expected} hold one row per image"
    for image in golden.images:
        yield from _one_of(f"golden: {image.path!r}: origin", image.origin, ORIGINS)
        if not image.path.endswith(".png"):
            yield f"golden: {image.path!r}: expected a PNG"
