"""The recipe: one YAML file is one build.

    recipe = Recipe.load("recipe.yaml")

Every problem of a file is reported at once, each with its line and key. Settings of images and
methods are the frozen dataclasses of their own rooms; the recipe only gives them a place.
"""

from __future__ import annotations

import dataclasses
import difflib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from hydistill_edge.errors import InputError, MissingFileError, ProfileError, RecipeError
from hydistill_edge.targets.base import Precision, TargetName
from hydistill_edge.yaml_lines import KeyPath, line_of, parse

Place = Callable[[KeyPath], KeyPath]
"""Where a key of a recipe stands in the file."""

METHODS = {
    "kd": "hydistill_edge.methods.kd:KDSettings",
    "rtk": "hydistill_edge.methods.rtk:RTKSettings",
    "kd3": "hydistill_edge.methods.kd3:KD3Settings",
    "hidfd": "hydistill_edge.methods.hidfd:HiDFDSettings",
    "infer": "hydistill_edge.methods.infer:InferSettings",
    "arch_overfitting": "hydistill_edge.methods.arch_overfitting:ArchOverfittingSettings",
}
"""Method name -> its settings dataclass, imported when a recipe asks for it.

The same module holds the method's `distill`, which takes what that of `methods.kd` takes.
"""

MethodName = Literal["kd", "rtk", "kd3", "hidfd", "infer", "arch_overfitting", "none"]

_MAKERS = {
    "inversion": "hydistill_edge.synthesis.inversion:InversionSettings",
    "procedural": "hydistill_edge.synthesis.procedural_set:ProceduralSettings",
    "gan": "hydistill_edge.synthesis.gan_settings:GanSettings",
    "infer": "hydistill_edge.synthesis.infer_settings:CompensatorSettings",
}
"""Sections of `images.synthetic`, and their settings dataclasses."""

_SOURCE = "hydistill_edge.images.sources:SourceSpec"

_NOT_IN_A_NAME = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, halves of surrogate pairs, line and paragraph ends."""


def _settings_type(where: str) -> type[Any]:
    module, _, name = where.partition(":")
    found: type[Any] = getattr(import_module(module), name)
    # Settings stay plain dataclasses in their own room; here they also refuse unknown keys.
    found.__pydantic_config__ = {"extra": "forbid"}
    return found


def _as(where: str, value: Any) -> Any:
    """Validate a mapping into the settings dataclass named by `where`."""
    kind = _settings_type(where)
    try:
        return value if isinstance(value, kind) else TypeAdapter(kind).validate_python(value)
    except InputError as error:
        raise ValueError(str(error)) from error


def _as_training(value: Any, info: ValidationInfo) -> Any:
    method = info.data.get("method")
    if method == "none" or method not in METHODS:
        if value not in (None, {}):
            raise ValueError("method none trains nothing: remove the training section")
        return None
    return _as(METHODS[method], {} if value is None else value)


def _fraction(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        hint = f" ({value:g} looks like percent: write {value / 100:g})" if 1 < value <= 100 else ""
        raise ValueError(f"expected a fraction between 0 and 1{hint}")
    return value


def _class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    # A name is one line of labels.txt, one row of a table and one JSON value.
    for place, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"name {place} is {name!r}; expected a name with a visible character")
        if any(unicodedata.category(sign) in _NOT_IN_A_NAME for sign in name):
            raise ValueError(
                f"name {place} is {name!r}; expected one line without control characters: "
                "remove them"
            )
    _refuse_duplicates("classes", names)
    return names


MemberName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
ClassNames = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_class_names)]
Fraction = Annotated[float, AfterValidator(_fraction)]
Inversion = Annotated[Any, PlainValidator(lambda value: _as(_MAKERS["inversion"], value))]
Procedural = Annotated[Any, PlainValidator(lambda value: _as(_MAKERS["procedural"], value))]
Gan = Annotated[Any, PlainValidator(lambda value: _as(_MAKERS["gan"], value))]
Infer = Annotated[Any, PlainValidator(lambda value: _as(_MAKERS["infer"], value))]
Source = Annotated[Any, PlainValidator(lambda value: _as(_SOURCE, value))]
Training = Annotated[Any, PlainValidator(_as_training)]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Input(Section):
    """What a network expects: its size, and the statistics its pixels are normalized with."""

    height: int = Field(ge=1, le=4096, description="Rows, in pixels.")
    width: int = Field(ge=1, le=4096, description="Columns, in pixels.")
    channels: Literal[1, 3] = Field(description="1 (grey) or 3 (RGB).")
    mean: tuple[float, ...] = Field(description="One per channel, in pixel units of [0, 1].")
    std: tuple[float, ...] = Field(description="One per channel, in pixel units of [0, 1].")

    @model_validator(mode="after")
    def _check(self) -> Input:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.channels} channels; "
                    "give one value per channel"
                )
            if any(value > 1 for value in values):
                raise ValueError(
                    f"{name} {list(values)} is not in [0, 1] pixel units; "
                    "statistics of 0-255 pixels must be divided by 255"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std {list(self.std)} must be greater than 0")
        return self


class Teacher(Section):
    """The trained classifier to learn from."""

    weights: str = Field(description="safetensors, .pt (weights only) or .onnx file.")
    architecture: str | None = Field(
        default=None,
        description='"zoo:NAME", "torchvision:NAME" or "my_net.py:build"; none for .onnx.',
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the architecture's factory."
    )
    classes: ClassNames = Field(description="Class names, in output order.")
    input: Input = Field(description="What it was trained with.")

    @model_validator(mode="after")
    def _check(self) -> Teacher:
        is_onnx = self.weights.lower().endswith(".onnx")
        if is_onnx and self.architecture is not None:
            raise ValueError("an .onnx file carries its architecture: remove teacher.architecture")
        if not is_onnx and self.architecture is None:
            raise ValueError(
                'weights alone are no network: give architecture, e.g. "torchvision:resnet18", '
                '"zoo:resnet20" or "my_net.py:build"'
            )
        return self


class Synthetic(Section):
    """Images made from the teacher alone, or after the real ones."""

    count: int = Field(
        default=2048,
        ge=0,
        description="How many; 0 makes none. With infer, above 0 for as many as its budget buys.",
    )
    maker: Literal["inversion", "gan", "infer"] = Field(
        default="inversion",
        description="inversion: from the teacher alone; gan: after the real images, at least a few "
        "hundred; infer: a few of the real images, with compensators added, as many as `infer.ipc` "
        "buys, in place of all others.",
    )
    inversion: Inversion = Field(default_factory=dict, description="Settings of the inversion.")
    procedural: Procedural = Field(
        default_factory=dict,
        description="Images from formulas, in addition: textures and shapes of which the teacher "
        "sees every class. For builds without real images.",
    )
    gan: Gan = Field(default_factory=dict, description="Settings of the GAN.")
    infer: Infer = Field(default_factory=dict, description="Settings of the compensated set.")


class Pilot(Section):
    """Which of the real images are taken; all of them where this section is missing."""

    kind: Literal["random", "confident", "selected", "strategic"] = Field(
        default="confident",
        description="confident: the teacher's surest of each class; selected: by method kd3's "
        "selector, then the surest; strategic: where an earlier run's synthetic images lack "
        "something; random.",
    )
    count: int = Field(default=5000, ge=2, description="Images to take.")
    threshold: Fraction | None = Field(
        default=None, description="Bar of the teacher's probability; 0.95, and 0.5 for strategic."
    )
    after: str | None = Field(
        default=None, description="Only with strategic: run directory of the earlier build."
    )

    @model_validator(mode="after")
    def _check(self) -> Pilot:
        if (self.kind == "strategic") != (self.after is not None):
            raise ValueError(
                "a strategic choice, and no other, looks at an earlier run's synthetic images: "
                "give after together with kind strategic"
            )
        return self


class ImageSection(Section):
    """The images that train the student and calibrate the targets."""

    height: int | None = Field(default=None, ge=8, le=1024, description="Default: teacher's.")
    width: int | None = Field(default=None, ge=8, le=1024, description="Default: teacher's.")
    channels: Literal[1, 3] | None = Field(
        default=None, description="What the camera delivers; default: the teacher's channels."
    )
    adapt: bool = Field(
        default=False,
        description="Resize and convert real images that differ; false refuses them.",
    )
    real: tuple[Source, ...] = Field(
        default=(), description="Few real images, without labels: folders, npz, tar shards, ..."
    )
    pilot: Pilot | None = Field(
        default=None, description="Take some of the real images only, and say why each."
    )
    synthetic: Synthetic = Synthetic()


SLIMMED, FACTORED = "slimmed", "factored"
"""As a student's architecture: the teacher with fewer channels, or with thinner layers."""

REDUCED = (SLIMMED, FACTORED)
"""Architectures that are made of the teacher."""

DEFAULT_SHARE = 0.25
"""What these keep of its multiply-accumulates unless the recipe says otherwise."""


class Student(Section):
    """The network to train, or (method none) the user's own trained one."""

    architecture: str | None = Field(
        default=None,
        description="Zoo name; or slimmed: the teacher itself with fewer channels; or factored: "
        "the teacher with every layer as a product of thinner ones. Both start from what the "
        "teacher knows. With weights: as for the teacher.",
    )
    width: float = Field(default=1.0, gt=0, le=4, description="Width multiplier of a zoo network.")
    macs_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Only for slimmed and factored: multiply-accumulates over those of the "
        "teacher, at most; 0.25 where it is not given.",
    )
    weights: str | None = Field(default=None, description="Only with method none.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Only with weights: as for the teacher."
    )
    input: Input | None = Field(default=None, description="Only with weights.")
    fold_input: bool = Field(
        default=False,
        description="Only with weights: fold mean and std into the first convolution. Faster at "
        "int8, but not exact at the image border; the error is measured and stated.",
    )
    classes: ClassNames | None = Field(default=None, description="Only where there is no teacher.")

    def share(self) -> float:
        """Return what a slimmed or factored teacher keeps of its multiply-accumulates."""
        return self.macs_share or DEFAULT_SHARE


class Target(Section):
    """A runtime on a device, in one or more precisions."""

    target: TargetName = Field(description="The runtime.")
    device: str = Field(default="host", description="A device profile's name, or its file.")
    precisions: tuple[Precision, ...] = Field(
        default=("int8",), min_length=1, description="One artifact each; the profile allows some."
    )

    @model_validator(mode="after")
    def _check(self) -> Target:
        _refuse_duplicates("precisions", self.precisions)
        return self


class Calibration(Section):
    """Which images the int8 ranges are taken from."""

    count: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="Images at most, balanced over the classes, disjoint from those of parity; "
        "fewer where fewer cover every range of the student's layers.",
    )
    source: Literal["transfer", "student"] = Field(
        default="transfer",
        description="transfer: images of the transfer set; student: images made from the "
        "student's own batch norms.",
    )
    times: int = Field(
        default=2, ge=1, le=16, description="Images that every part of a range is to be seen in."
    )
    ranges: Literal["auto", "minmax", "percentile", "entropy", "mse"] = Field(
        default="auto",
        description="How ranges are taken from activations; auto builds with each and keeps the "
        "artifact nearest to the student, on images apart from all others.",
    )
    quality: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Score that the images must reach, whatever int8 makes of them; the default "
        "depends on what is there to judge by, and counts only where there are no controls.",
    )
    controls: int = Field(
        default=128,
        ge=0,
        le=1024,
        description="Images made anew from the student's own batch norms, on which every int8 "
        "artifact is held against the student; 0 makes none, and the score decides.",
    )
    control_db: float = Field(
        default=21.0,
        gt=0,
        le=100,
        description="Signal to noise of int8 logits on the controls, at least, in decibels; the "
        "median image counts.",
    )


class Parity(Section):
    """How many images prove that an artifact agrees with the student."""

    images: int = Field(
        default=1024, ge=16, le=1_000_000, description="Half of them real, where there are so many."
    )
    golden: int = Field(default=16, ge=1, le=256, description="Shipped, and re-checked on site.")


class Latency(Section):
    """How long each artifact is measured."""

    mode: Literal["demo", "quick", "full"] = Field(
        default="quick",
        description="demo: 3 s in all, always advisory; quick: 10 s a scope; full: 60 s a scope.",
    )
    threads: int | None = Field(default=None, ge=1, le=256, description="Default: the profile's.")


class Gates(Section):
    """Limits that an artifact must keep; a broken one ends the build with exit code 1."""

    student_agreement: Fraction | None = Field(
        default=None, description="Student against teacher on the hold-out, at least."
    )
    int8_agreement_synthetic: Fraction = Field(
        default=0.99, description="int8 against float student, synthetic images, at least."
    )
    int8_agreement_real: Fraction = Field(
        default=0.985, description="The same on real images, where there are any."
    )
    accuracy_drop_points: float | None = Field(
        default=None, ge=0, le=100, description="int8 below the float student, in percent points."
    )


class Bundle(Section):
    """What is written on the box."""

    version: str = Field(
        default="0.1.0",
        pattern=r"^\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?$",
        description="Three numbers: 1.0.0.",
    )
    license: str = Field(
        default="", max_length=200, pattern=r"^[^\r\n]*$", description="Licence of the student."
    )
    description: str = Field(
        default="", max_length=2000, description="What the student is for; for the model card."
    )


class Member(Section):
    """One of several students that share teacher and images: what is its own."""

    name: MemberName = Field(description="Of the student: its folder, and part of file names.")
    student: Student = Field(description="The network to train.")
    method: MethodName | None = Field(default=None, description="Default: the recipe's.")
    training: dict[str, Any] | None = Field(
        default=None,
        description="Keys that differ from the recipe's training; all of them where the method "
        "does.",
    )
    targets: tuple[Target, ...] | None = Field(
        default=None, min_length=1, description="Default: the recipe's."
    )

    def given(self) -> set[str]:
        """Return the keys that stand in the file with a value."""
        return {key for key in self.model_fields_set if getattr(self, key) is not None}


class Recipe(Section):
    """One build, with every default written out."""

    schema_version: Literal[1] = Field(default=1, description="Of the recipe's format.")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Of the build: letters, digits, dots, underscores, hyphens; in file names too.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of every random choice.")
    teacher: Teacher | None = Field(
        default=None, description="The trained classifier; not needed with method none."
    )
    method: MethodName = Field(
        default="kd",
        description="kd distills from the teacher's logits; rtk from its most influential layers "
        "too; kd3 from the images of a web pool that fit; hidfd from a few collected images and "
        "those of a GAN; infer from a few images with compensators added; arch_overfitting trains "
        "a large student on few images beside a small network; none takes your own trained "
        "student.",
    )
    images: ImageSection = ImageSection()
    student: Student
    training: Training = Field(
        default=None, description="Settings of the method; null takes its defaults."
    )
    targets: tuple[Target, ...] = Field(min_length=1)
    calibration: Calibration = Calibration()
    parity: Parity = Parity()
    latency: Latency = Latency()
    gates: Gates = Gates()
    evaluation: Source | None = Field(
        default=None, description="Labelled images for the final accuracies; looked at once."
    )
    shifted_evaluation: Source | None = Field(
        default=None,
        description="Labelled images from another camera, season or site, beside those of "
        "evaluation: how accuracies hold up where images look different.",
    )
    bundle: Bundle = Bundle()

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Relative paths in it are taken from the file's own folder.

        Raises:
            RecipeError: every problem at once, with line and key.
            MissingFileError: the recipe itself, or files that it names, do not exist.
        """
        path = Path(path)
        recipe = cls.parse(read_text(path), name=str(path), base=path.parent)
        refuse_missing(path, recipe.files())
        return recipe

    @classmethod
    def parse(cls, text: str, *, name: str = "recipe", base: Path | None = None) -> Recipe:
        """Read a recipe from a text; see `load`. Files are not looked for."""
        value, lines = parse_mapping(text, name=name)
        if "students" in value:
            raise RecipeError(
                [
                    f"{_where(('students',), lines)}this recipe is for several students; expected "
                    "one: build it with `hydistill build`, or read it with family.read_recipe"
                ],
                path=name,
            )
        recipe, problems = cls.check(value, lines, base=base)
        if recipe is None:
            raise RecipeError(problems, path=name)
        return recipe

    @classmethod
    def check(
        cls,
        value: Mapping[str, Any],
        lines: Mapping[KeyPath, int],
        *,
        base: Path | None = None,
        place: Place = tuple,
    ) -> tuple[Recipe | None, list[str]]:
        """Return the recipe in a file's plain value, or its problems, each with line and key.

        Args:
            value: of the file.
            lines: of its keys.
            base: folder that relative paths start from; None leaves them as they are.
            place: where a key of the recipe stands in the file.
        """
        if base is not None:
            value = _with_base(dict(value), base.absolute())
        try:
            recipe = cls.model_validate(value)
        except ValidationError as error:
            return None, list(problems_of(error, lines, place=place))
        problems = [
            f"{_where(place(path), lines)}{problem}"
            for path, problem in recipe._impossible_combinations()
        ]
        return (None if problems else recipe), problems

    def files(self) -> list[Path]:
        """Return every file or folder that the recipe names and a build will read."""
        sections = [section for section in (self.teacher, self.student) if section]
        named = [section.weights for section in sections]
        code = [section.architecture for section in sections if section.architecture]
        named += [name.rpartition(":")[0] for name in code if ".py:" in name]
        labelled = [self.evaluation, self.shifted_evaluation]
        sources = [*self.images.real, *(source for source in labelled if source)]
        named += [s.path for s in sources if s.path and s.kind not in ("torchvision", "shards")]
        named += [file for s in sources for file in (s.provenance, s.exclude)]
        named += [getattr(self.training, "decisions", None)]
        named += [self.images.pilot.after] if self.images.pilot else []
        return [Path(name) for name in named if name]

    def to_yaml(self) -> str:
        """Return the resolved recipe: every default written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain values."""
        plain: dict[str, Any] = _plain(dict(self))
        return plain

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of a recipe file, for editors."""
        schema = _FileSchema.model_json_schema()
        definitions = schema.setdefault("$defs", {})
        for name, where in _settings_names().items():
            found = TypeAdapter(_settings_type(where)).json_schema(ref_template="#/$defs/{model}")
            definitions.update(found.pop("$defs", {}))
            definitions[name] = found
        _fill_schema(schema)
        schema.update(title=cls.__name__, description=cls.__doc__)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    def _impossible_combinations(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield (key, problem) for sections that are right alone and wrong together."""
        yield from self._method_problems()
        yield from self._image_problems()
        yield from self._missing_images()
        yield from self._target_problems()

    def _method_problems(self) -> Iterator[tuple[KeyPath, str]]:
        own = self.student.weights is not None
        if self.method == "none" and not own:
            yield ("student",), "method none starts from your own student: give student.weights"
        if self.method != "none":
            if self.teacher is None:
                yield ("method",), f"method {self.method} needs a teacher section"
            if own:
                yield (
                    ("student", "weights"),
                    f"method {self.method} trains a new student: remove weights or use none",
                )
            yield from self._student_problems()
        if own and self.student.input is None:
            yield ("student",), "own weights need student.input (size, channels, mean, std)"
        if own and self.teacher is None and self.student.classes is None:
            yield ("student",), "without a teacher, student.classes must name the classes"
        if (
            own
            and not str(self.student.weights).lower().endswith(".onnx")
            and not self.student.architecture
        ):
            yield ("student", "weights"), "weights alone are no network: give student.architecture"
        if self.student.classes and self.teacher and self.student.classes != self.teacher.classes:
            yield ("student", "classes"), "differ from the teacher's: remove them"

    def _student_problems(self) -> Iterator[tuple[KeyPath, str]]:
        from hydistill_edge.models.zoo import ZOO

        name = self.student.architecture
        if name != FACTORED and getattr(self.training, "layer_weight", None):
            yield (
                ("training", "layer_weight"),
                f"only for student.architecture {FACTORED}, which has all channels of its "
                "teacher's layers; feature_weight is for any student",
            )
        if name in REDUCED:
            yield from self._reduced_problems(name)
            return
        if self.student.macs_share is not None:
            yield (
                ("student", "macs_share"),
                "only for architecture slimmed or factored; give width",
            )
        if name is None:
            yield (
                ("student",),
                f"architecture is missing; {SLIMMED}, {FACTORED}, or of the zoo: "
                + ", ".join(sorted(ZOO)),
            )
        elif name.removeprefix("zoo:") not in ZOO:
            known = ", ".join(sorted(ZOO))
            close = difflib.get_close_matches(name, ZOO, n=1)
            hint = f' (did you mean "{close[0]}"?)' if close else ""
            yield (
                ("student", "architecture"),
                f'"{name}" is not in the zoo{hint}; it has {known}; or {SLIMMED}, for the teacher '
                f"with fewer channels, or {FACTORED}, for its layers as products of thinner ones",
            )

    def _reduced_problems(self, name: str) -> Iterator[tuple[KeyPath, str]]:
        if self.student.width != 1.0:  # the resolved recipe names the default
            yield ("student", "width"), f"only for a zoo network; {name} takes macs_share"
        if self.teacher is not None and self.teacher.weights.lower().endswith(".onnx"):
            yield (
                ("student", "architecture"),
                f"{name} changes the layers of a PyTorch network, and an .onnx file's graph is "
                "fixed: name a network of the zoo",
            )

    def _image_problems(self) -> Iterator[tuple[KeyPath, str]]:
        classes = self.class_names()
        count, drawn = self.images.synthetic.count, self.images.synthetic.procedural.count
        if not self.images.real and count == 0 and drawn == 0:
            yield (
                ("images",),
                "no image to work with: give real sources, or synthetic.count above 0",
            )
        if not self.images.real:
            if count and self.images.synthetic.maker == "gan":
                yield ("images", "synthetic", "maker"), "gan learns from real images: give sources"
            if count and self.images.synthetic.maker == "infer":
                yield ("images", "synthetic", "maker"), "infer adds to real images: give sources"
            if self.images.pilot is not None:
                yield ("images", "pilot"), "nothing to choose from: give real sources"
        if self.images.pilot is not None and self.images.pilot.count < len(classes):
            yield (
                ("images", "pilot", "count"),
                f"{self.images.pilot.count} images cannot cover {len(classes)} classes",
            )
        for path, number in ((("count",), count), (("procedural", "count"), drawn)):
            if 0 < number < len(classes):
                yield (
                    ("images", "synthetic", *path),
                    f"{number} images cannot cover {len(classes)} classes",
                )
        for name in ("evaluation", "shifted_evaluation"):
            source = getattr(self, name)
            if source is not None and not source.use_labels:
                yield (name,), "an accuracy needs labels: set use_labels: true"
        if self.shifted_evaluation is not None and self.evaluation is None:
            yield (
                ("shifted_evaluation",),
                "there is nothing to hold it against: name the usual images under evaluation",
            )
        _height, _width, channels = self.image_size()
        network = (self.teacher or self.student).input
        if network is not None and network.channels == 1 and channels == 3:
            yield (
                ("images", "channels"),
                "colour images for a grey network: set images.channels to 1",
            )

    def _missing_images(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield what a method would ask for in vain, after hours of making other images."""
        made = self.images.synthetic.count > 0
        if self.method == "hidfd":
            arm = self.training.arm
            if arm != "synthetic" and not self.images.real:
                yield (
                    ("method",),
                    f"hidfd with arm {arm} learns from collected images: name them under "
                    "images.real, or use method kd",
                )
            if arm != "collected" and not made:
                yield (
                    ("images", "synthetic", "count"),
                    f"hidfd with arm {arm} learns from made images too: set it above 0, or "
                    "training.arm to collected",
                )
        if self.method == "arch_overfitting" and self.training.labels == "true":
            other = "or set training.labels to soft or hard, which take the teacher's answers"
            if not self.images.real:
                yield (
                    ("training", "labels"),
                    f"true labels come with real images: name them under images.real, {other}",
                )
            for index, source in enumerate(self.images.real):
                if not source.use_labels:
                    yield (
                        ("images", "real", index),
                        f"training on true labels needs those of every source: set use_labels: "
                        f"true, {other}",
                    )
            section = self.images.synthetic
            for path, unlabelled in (
                (("count",), made and section.maker != "infer"),
                (("procedural", "count"), section.procedural.count > 0),
            ):
                if unlabelled:
                    yield (
                        ("images", "synthetic", *path),
                        f"made images have no true label: set it to 0, {other}",
                    )

    def _target_problems(self) -> Iterator[tuple[KeyPath, str]]:
        from hydistill_edge.targets.profiles import load_profile

        seen: set[tuple[str, str]] = set()
        for index, entry in enumerate(self.targets):
            path: KeyPath = ("targets", index)
            try:
                profile = load_profile(entry.device)
            except ProfileError as error:
                yield (*path, "device"), str(error)
                continue
            if (entry.target, profile.name) in seen:  # "host" is one of the others
                yield path, f"{entry.target} on {profile.name} stands twice; merge the precisions"
            seen.add((entry.target, profile.name))
            allowed = profile.precisions(entry.target)
            if not allowed:
                yield (*path, "target"), f"{entry.device} does not run {entry.target}"
            for precision in entry.precisions:
                if allowed and precision not in allowed:
                    yield (
                        (*path, "precisions"),
                        f"{entry.device} runs {entry.target} in {', '.join(allowed)}; "
                        f"not in {precision}",
                    )

    def class_names(self) -> tuple[str, ...]:
        """Return the class names, from the teacher or, without one, from the student section."""
        if self.teacher is not None:
            return self.teacher.classes
        return self.student.classes or ()

    def image_size(self) -> tuple[int, int, int]:
        """Return (height, width, channels) of the images that the device will deliver."""
        network = (self.teacher or self.student).input
        height = self.images.height or (network.height if network else 0)
        width = self.images.width or (network.width if network else 0)
        channels = self.images.channels or (network.channels if network else 3)
        return height, width, channels


class _FileSchema(Recipe):
    """`Recipe` for the JSON schema alone: fields with settings become plain placeholders."""

    student: Student | None = Field(  # type: ignore[assignment]
        default=None, description="The network to train, or your own."
    )
    students: tuple[Member, ...] = Field(
        default=(), description="In place of student: several, from one transfer set."
    )

    training: Any = Field(
        default=None, description="Settings of the method; null takes its defaults."
    )


def _settings_names() -> dict[str, str]:
    return {
        "Source": _SOURCE,
        **{kind.capitalize(): where for kind, where in _MAKERS.items()},
        **_method_names(),
    }


def _method_names() -> dict[str, str]:
    return {where.rpartition(":")[2]: where for where in METHODS.values()}


def _fill_schema(schema: dict[str, Any]) -> None:
    """Point the placeholders of the settings at their definitions."""
    definitions = schema["$defs"]
    source = {"$ref": "#/$defs/Source"}
    definitions["ImageSection"]["properties"]["real"]["items"] = source
    for kind in _MAKERS:
        definitions["Synthetic"]["properties"][kind] = {"$ref": f"#/$defs/{kind.capitalize()}"}
    for name in ("evaluation", "shifted_evaluation"):
        schema["properties"][name]["anyOf"] = [source, {"type": "null"}]
    methods = [{"$ref": f"#/$defs/{name}"} for name in _method_names()]
    schema["properties"]["training"]["anyOf"] = [*methods, {"type": "null"}]


def _refuse_duplicates(name: str, values: tuple[str, ...]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{name} must differ from each other; twice: {', '.join(twice)}")


def _with_base(value: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the paths of a recipe absolute; anything malformed is left for validation to refuse."""

    def absolute(section: Any, key: str) -> Any:
        if not isinstance(section, Mapping) or not isinstance(section.get(key), str):
            return section
        if not section[key]:
            return section
        return {**section, key: str(base / section[key])}

    def source(section: Any) -> Any:
        for key in ("path", "provenance", "exclude"):
            section = absolute(section, key)
        return section

    for name in ("teacher", "student"):
        section = absolute(value.get(name), "weights")
        if isinstance(section, Mapping) and ".py:" in str(section.get("architecture")):
            section = absolute(section, "architecture")
        if name in value:
            value[name] = section
    if isinstance(value.get("images"), Mapping) and isinstance(value["images"].get("real"), list):
        real = [source(section) for section in value["images"]["real"]]
        value["images"] = {**value["images"], "real": real}
    if isinstance(value.get("images"), Mapping) and "pilot" in value["images"]:
        pilot = absolute(value["images"]["pilot"], "after")
        value["images"] = {**value["images"], "pilot": pilot}
    if "training" in value:
        value["training"] = absolute(value["training"], "decisions")
    for name in ("evaluation", "shifted_evaluation"):
        if name in value:
            value[name] = source(value[name])
    if isinstance(value.get("targets"), list):
        value["targets"] = [
            absolute(entry, "device")
            if isinstance(entry, Mapping) and str(entry.get("device")).endswith((".yaml", ".yml"))
            else entry
            for entry in value["targets"]
        ]
    return value


def _plain(value: Any) -> Any:
    """Return pydantic models and dataclasses as values that YAML and JSON know."""
    if isinstance(value, BaseModel):
        return _plain(dict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_text(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        MissingFileError: there is none.
        RecipeError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(
            f"there is no recipe file {path}; `hydistill init TEACHER` writes one"
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"not a text file: {error}"], path=str(path)) from error


def refuse_missing(path: Path, files: Iterable[Path]) -> None:
    """Refuse a recipe that names files which are not there.

    Raises:
        MissingFileError: naming them.
    """
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise MissingFileError(
            f"{path} names files that do not exist: {', '.join(missing)}; "
            "relative paths start at the recipe's folder"
        )


def parse_mapping(text: str, *, name: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return a recipe file's plain value and the line of each key.

    Raises:
        RecipeError: broken YAML, or no mapping of sections.
    """
    value, lines = parse(text, name=name)
    if not isinstance(value, Mapping):
        raise RecipeError(
            [f"a recipe is a mapping of sections, not a {type(value).__name__}"], path=name
        )
    return dict(value), lines


def _where(path: KeyPath, lines: Mapping[KeyPath, int]) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    line = line_of(path, lines)
    return f"line {line}: {key}: " if line else f"{key}: "


def problems_of(
    error: ValidationError,
    lines: Mapping[KeyPath, int],
    above: KeyPath = (),
    *,
    place: Place = tuple,
) -> Iterator[str]:
    """Yield one readable line per problem, nested validation included."""
    items = error.errors(include_url=False)
    for item in items:
        path: KeyPath = (*above, *item["loc"])
        inner = [other["loc"] for other in items if len(other["loc"]) > len(item["loc"])]
        if item["type"] == "too_short" and any(
            loc[: len(item["loc"])] == item["loc"] for loc in inner
        ):
            continue  # only short because what stood in it is broken, which is told anyway
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            yield from problems_of(cause, lines, path, place=place)
        else:
            yield _where(place(path), lines) + _reason(item, path)


def _reason(item: Any, path: KeyPath) -> str:
    kind, value = item["type"], item.get("input")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(path[:-1])
        if path[-1] in known:  # of the training section, which differs from method to method
            return f"unknown key; it belongs to method {', '.join(_methods_with(path[-1]))}"
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        return f"unknown key{hint}"
    if kind in ("missing", "missing_argument"):
        return "this key is missing"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    shown = "" if isinstance(value, dict | list | tuple) else f", not {value!r}"
    message = item["msg"].replace("Input should be", "expected")
    return f"{message[0].lower()}{message[1:]}{shown}"


def _methods_with(key: str | int) -> list[str]:
    return [
        name
        for name, where in METHODS.items()
        if any(field.name == key for field in dataclasses.fields(_settings_type(where)))
    ]


def _known_keys(path: KeyPath) -> list[str]:
    """Return the keys that may stand at a place of the recipe."""
    node: Any = Recipe
    settings = {
        **_MAKERS,
        **dict.fromkeys(("real", "evaluation", "shifted_evaluation"), _SOURCE),
    }
    for part in path:
        if isinstance(part, int):
            continue
        if part == "students":
            node = Member
            continue
        if part == "training":  # an unknown key of any method is worth a hint
            kinds = [_settings_type(where) for where in METHODS.values()]
            return sorted({field.name for kind in kinds for field in dataclasses.fields(kind)})
        if part in settings:
            node = _settings_type(settings[str(part)])
            continue
        fields = getattr(node, "model_fields", {})
        if part not in fields:
            return []
        inner = fields[part].annotation
        kinds = [
            kind for kind in (inner, *getattr(inner, "__args__", ())) if isinstance(kind, type)
        ]
        node = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    if dataclasses.is_dataclass(node):
        return [field.name for field in dataclasses.fields(node)]
    return list(getattr(node, "model_fields", {}))
