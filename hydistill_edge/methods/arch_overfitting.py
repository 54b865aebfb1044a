"""The cure for architecture overfitting: a large student on few images, beside a small network.

Source: Zhong and Liu 2025, "Towards Mitigating Architecture Overfitting on Distilled Datasets",
arXiv:2309.04195, IEEE TNNLS, and its released settings.

On very few images, distilled or real, a small network learns more than a large one. What helps the
large one is to be trained as the many shallow networks that are in it (DropPath, whose keep rate
falls and then rises again), each of them close to the small network, which is trained on the same
images first and teaches the large one. A rate that starts anew again and again, the optimizer Lion,
two operations of augmentation per batch, and shortcuts that pool smooth the rest of the way.

What it needs: a transfer set; its labels are the teacher's logits, softened, or classes. Each part
can be switched on alone; a student whose branches cannot be told is trained without DropPath.
What it gives: a student of its own architecture with nothing of the training in it, except that
the shortcuts of a residual student pool; and `arch_overfitting.json` with its distance to the small
network on the hold-out, the number that this method is about.

`arms` has the five ways of training that are published: the whole, without small network, without
DropPath, without both, and the baseline, which is also how the small network is trained.

Where this departs from the released code, and why:

- The keep rate is set on every branch, and counted: there, it is set on none, so nothing is ever
  dropped.
- The peak of the rate is constant, as there in effect; schedule `periodic_decay` is what its code
  intends.
- Labels are softened on the way and never written over: there, they are divided in place.
- Phases are shares of the steps, so that a short training has the shape of the long one.
- The lowest keep rate follows from the student's depth: 0.5 up to 20 layers, 0.35 from 50 on, as
  published for both; there, the student's name decides.
- The weights that are kept are chosen on held-out images; there, on the test set.
- Weight decay leaves out biases and norms, and convolutions in front of a norm have no bias.
- Brightness is multiplied by 0.75 to 1.25, where there up to half a standard deviation is added;
  what is outside a cropped or turned image is mirrored.
- Which shortcuts the arms without DropPath have is not told; here, plain ones, since the pooling
  ones are for branches that are dropped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.images.augment import Augment, AugmentSettings, draw_operations
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.methods.distilled import Distilled, check_fit, fingerprint, portion
from hydistill_edge.methods.gap_report import Trial, gap_report
from hydistill_edge.methods.pool import Draws, Pool, is_real, judge_on, split
from hydistill_edge.methods.settings import TrainingSettings
from hydistill_edge.models.anatomy import probe_input
from hydistill_edge.models.shortcuts import pool_shortcuts
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import eval_mode
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import ZOO
from hydistill_edge.objectives.logits import kd_kl, soft_cross_entropy
from hydistill_edge.training.droppath import DroppedPaths
from hydistill_edge.training.loop import Judgement, Plan, Progress, Trained, train
from hydistill_edge.training.optimizers import OptimizerName
from hydistill_edge.training.schedules import keep_rate

DOCUMENT = "arch_overfitting.json"

SMALL_NETWORK = "small_network"
"""Folder of the small network, beside its student's files."""

STEPS = 4000
STEPS_WITHOUT_DROP_PATH = 1000

SHALLOW, DEEP = 20, 50
"""Depths, in layers, with a published lowest keep rate; between them it falls along a line."""
FLOOR_SHALLOW, FLOOR_DEEP = 0.5, 0.35

SMALL_SHARE = 0.2
"""Share of `max_seconds` that is the small network's."""

Labels = Literal["soft", "hard", "true"]


@dataclass(frozen=True)
class ArchOverfittingSettings(TrainingSettings):
    """How the student is trained; the defaults are the published ones.

    Attributes:
        steps: optimizer steps; null for 4,000 with DropPath and 1,000 without. Published for 100
            images in batches of 100.
        batch: images per step; the whole set where it is smaller.
        drop_path: leave out branches at random while training.
        keep_floor: lowest share of branches that are kept; null for 0.5 up to 20 layers, 0.35 from
            50 on.
        keep_last: share of branches that are kept in the last quarter.
        pool_shortcuts: shortcuts of a residual student pool where its map shrinks; they stay so in
            the exported student.
        kd_weight: of the small network's answers, in [0, 1]; the rest is that of the labels. 0 for
            labels alone.
        temperature: softening of both sides towards the small network, above 0.
        small: network of the zoo that is trained first and teaches; null for none. With kd_weight 0
            it is trained for comparison only.
        small_width: multiplier of its channels.
        small_steps: optimizer steps of its training.
        small_learning_rate: of its training, with AdamW.
        labels: `soft` (the teacher's stored logits), `hard` (its first class) or `true` (true
            labels, where the set has them).
        label_temperature: softening of soft labels, above 0; published: 0.3 for FRePo's.
        optimizer: `lion`, `adamw` or `sgd` (Nesterov).
        learning_rate: peak of the schedule; for AdamW about ten times Lion's.
        schedule: null for `periodic` with DropPath and `warm_cosine` without; or
            `periodic_decay`, `one_step` and the others.
        operations: augmentations of each batch, drawn from color, crop, cutout, flip, rotate and
            scale.
        flip: mirroring is among them. Wrong where left and right differ in meaning.
        augment: strengths in full; null for crops by an eighth of the side, a cutout of half, turns
            of 15 degrees, sizes of 0.8 to 1.2, colors, and `flip`.
        real_share: share of real images in each batch, in [0, 1]; null for their share in the set.
        max_seconds: wall time after which training ends, its schedule compressed; a fifth of it is
            the small network's. Null for none.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    steps: int | None = None
    batch: int = 100
    drop_path: bool = True
    keep_floor: float | None = None
    keep_last: float = 0.8
    pool_shortcuts: bool = True
    kd_weight: float = 0.5
    temperature: float = 1.5
    small: str | None = "convnet3"
    small_width: float = 1.0
    small_steps: int = STEPS_WITHOUT_DROP_PATH
    small_learning_rate: float = 5e-4
    labels: Labels = "soft"
    label_temperature: float = 1.0
    optimizer: OptimizerName = "lion"
    learning_rate: float = 5e-5
    schedule: str | None = None
    weight_decay: float = 5e-3
    operations: int = 2
    real_share: float | None = None
    evaluations: int = 40

    def problems(self) -> list[str]:
        """Return what is out of range, one line each."""
        problems = super().problems()
        for name in ("keep_floor", "keep_last"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate <= 1:
                problems.append(f"{name} is {rate}; expected a share in (0, 1]")
        if not 0 <= self.kd_weight <= 1:
            problems.append(f"kd_weight is {self.kd_weight}; expected a share in [0, 1]")
        if self.kd_weight > 0 and self.small is None:
            problems.append(
                f"kd_weight is {self.kd_weight} and no small network is named; name one (small: "
                "convnet3), or set kd_weight to 0"
            )
        if self.small is not None and self.small not in ZOO:
            problems.append(f'small "{self.small}"; expected one of the zoo: {", ".join(ZOO)}')
        problems += [
            f"{name} is {getattr(self, name)}; expected more than 0"
            for name in ("temperature", "label_temperature", "small_width", "small_learning_rate")
            if not getattr(self, name) > 0
        ]
        if self.small_steps < 1:
            problems.append(f"small_steps is {self.small_steps}; expected at least 1")
        if self.labels not in ("soft", "hard", "true"):
            problems.append(f'labels "{self.labels}"; expected "soft", "hard" or "true"')
        if self.operations < 0:
            problems.append(f"operations is {self.operations}; expected at least 0")
        if self.real_share is not None and not 0 <= self.real_share <= 1:
            problems.append(f"real_share is {self.real_share}; expected a share in [0, 1] or none")
        return problems

    def plan(self) -> Plan:
        """Return what the training loop needs of this."""
        steps = STEPS if self.drop_path else STEPS_WITHOUT_DROP_PATH
        schedule = "periodic" if self.drop_path else "warm_cosine"
        return Plan.of(
            self,
            steps=steps if self.steps is None else self.steps,
            schedule=self.schedule or schedule,
        )

    def floor(self, depth: int) -> float:
        """Return the lowest keep rate of a student of so many layers."""
        if self.keep_floor is not None:
            return self.keep_floor
        share = min(1.0, max(0.0, (depth - SHALLOW) / (DEEP - SHALLOW)))
        return FLOOR_SHALLOW + share * (FLOOR_DEEP - FLOOR_SHALLOW)

    def augmentation(self, size: tuple[int, int]) -> AugmentSettings:
        """Return the strengths of all operations for images of a size (height, width)."""
        if self.augment is not None:
            return self.augment
        side = min(size)
        return AugmentSettings(
            crop_pad=side // 8,
            flip=0.5 * self.flip,
            cutout=side // 2,
            rotate=15.0,
            scale=0.2,
            brightness=0.25,
            contrast=0.5,
            saturation=1.0,
        )


Arm = Literal["baseline", "wo_dp_kd", "wo_dp", "wo_kd", "full"]


def arms(full: ArchOverfittingSettings | None = None) -> dict[Arm, ArchOverfittingSettings]:
    """Return the five published ways of training, in the published order.

    Args:
        full: with all parts on; the others differ from it in the parts that they lack, and train
            for a quarter of its steps where there is no DropPath.
    """
    full = full or ArchOverfittingSettings()
    wo_dp = replace(
        full,
        drop_path=False,
        pool_shortcuts=False,
        steps=max(1, full.plan().steps * STEPS_WITHOUT_DROP_PATH // STEPS),
    )
    wo_dp_kd = replace(wo_dp, kd_weight=0.0)
    baseline = replace(
        wo_dp_kd,
        optimizer="adamw",
        learning_rate=full.small_learning_rate,
        weight_decay=5e-4,
        schedule="one_step",
        operations=1,
    )
    return {
        "baseline": baseline,
        "wo_dp_kd": wo_dp_kd,
        "wo_dp": wo_dp,
        "wo_kd": replace(full, kd_weight=0.0),
        "full": full,
    }


def distill(
    teacher: Teacher,
    student: Student,
    transfer: TransferSet,
    settings: ArchOverfittingSettings | None = None,
    *,
    workdir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    small_workdir: Path | None = None,
    held_out: Indices | None = None,
) -> Distilled:
    """Train a small network, then the student, on the transfer set.

    Args:
        teacher: its stored logits are the labels; it is not asked anything.
        student: trained in place, or copied where its shortcuts are to pool.
        transfer: images with the teacher's logits.
        settings: how to train.
        workdir: where the checkpoints lie. Called again after a kill, with the same arguments,
            training goes on and ends with the same result.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (steps done, steps in all, the last metrics).
        small_workdir: where the small network's checkpoint lies, if not in `workdir`; several
            students of one set share it, and only the first trains.
        held_out: places in the transfer set that choose the weights, where the few images that
            train leave none to spare; None to draw `settings.holdout` of all.

    Returns:
        The student, `arch_overfitting.json` among the documents, and the small network, where there
        is one.

    Raises:
        MethodError: classes differ, too few images, an image without a true label where those are
            asked for, a student whose blocks cannot be told (switch DropPath off), or the loss is
            no longer finite.
    """
    settings = settings or ArchOverfittingSettings()
    check_fit(teacher, student, transfer)
    task = _Task(teacher, transfer, settings, seed, torch.device(device), held_out)
    student.to(task.device)
    if settings.pool_shortcuts:
        student = pool_shortcuts(student)
    paths = _paths(student, seed) if settings.drop_path else None
    small, plan, parts = None, settings.plan(), 1
    digest = task.digest(student, settings)
    if settings.small is not None:
        parts = 2
        folder = small_workdir or workdir / "small"
        small = task.train_small(settings.small, folder, portion(progress, 0, parts))
        plan = _part_of(plan, 1 - SMALL_SHARE)
        # A small network that was trained against the clock is not a result of its settings.
        digest = hashlib.sha256(f"{digest} {small.student.digest}".encode()).hexdigest()
    trained = task.train(
        student,
        settings,
        plan,
        paths=paths,
        small=None if small is None else small.student,
        folder=workdir,
        digest=digest,
        progress=portion(progress, parts - 1, parts),
    )
    document = gap_report(
        Trial(student, trained),
        small,
        pool=task.pool,
        held_out=task.held_out,
        batch=settings.batch,
        parts={
            "drop_path": settings.drop_path,
            "pool_shortcuts": student.options.get("shortcut") == "pool",
            "kd_weight": settings.kd_weight,
            "optimizer": plan.optimizer,
            "schedule": plan.schedule,
            "operations": settings.operations,
        },
        dropped=None if paths is None else _dropped(paths, settings),
    )
    return Distilled.of(
        student,
        trained,
        task.held_out,
        documents={DOCUMENT: document},
        networks={} if small is None else {SMALL_NETWORK: small.student},
    )


class _Training(nn.Module):
    """A student and its virtual shortcuts as one module, so that one loop trains and saves both."""

    def __init__(self, student: Student, paths: DroppedPaths | None) -> None:
        super().__init__()
        self.student = student
        self.paths = paths

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of pixels (N, C, H, W), in training with some branches left out."""
        if self.paths is None:
            logits: Tensor = self.student(pixels)
            return logits
        dropped: Tensor = self.paths(self.student.normalize(pixels))
        return dropped


class _Task:
    """What both trainings share: the images, what is held out, the labels."""

    def __init__(
        self,
        teacher: Teacher,
        transfer: TransferSet,
        settings: ArchOverfittingSettings,
        seed: int,
        device: torch.device,
        held_out: Indices | None,
    ) -> None:
        self.teacher, self.transfer, self.settings = teacher, transfer, settings
        self.seed, self.device = seed, device
        self._given = held_out is not None
        if held_out is None:
            self.train_on, self.held_out = split(transfer, settings.holdout, seed)
        else:
            self.train_on = np.setdiff1d(np.arange(len(transfer)), held_out)
            self.held_out = held_out
        self.pool = Pool(transfer, device)
        self._classes = torch.from_numpy(transfer.labels.astype(np.int64)).to(device)
        missing = int((transfer.labels[self.train_on] < 0).sum())
        if settings.labels == "true" and missing:
            raise MethodError(
                f"{missing} of {len(self.train_on)} images to train on have no true label; give "
                "labelled sources (use_labels: true), or set training.labels to soft or hard, "
                "which take the teacher's answers"
            )

    def digest(self, student: Student, settings: ArchOverfittingSettings) -> str:
        """Return a digest of all that the training of a student depends on."""
        whole = fingerprint(self.teacher, student, self.transfer, settings, self.seed)
        places = self.held_out.tolist() if self._given else []
        return hashlib.sha256(f"{whole} {places}".encode()).hexdigest()

    def label_loss(self, logits: Tensor, rows: Indices) -> Tensor:
        """Return the cross entropy against the labels of some images, shape ()."""
        settings = self.settings
        if settings.labels == "true":
            places = torch.from_numpy(rows).to(self.device)
            return F.cross_entropy(logits.float(), self._classes[places])
        stored = self.pool.logits(rows)
        if settings.labels == "hard":
            return F.cross_entropy(logits.float(), stored.argmax(dim=1))
        return soft_cross_entropy(logits, F.softmax(stored / settings.label_temperature, dim=1))

    def train_small(self, name: str, folder: Path, progress: Progress | None) -> Trial:
        """Train the small network by the baseline."""
        transfer, settings = self.transfer, self.settings
        student = Student.create(
            name,
            classes=transfer.classes,
            channels=transfer.channels,
            size=transfer.size,
            width=settings.small_width,
            seed=self.seed,
        )
        # What concerns the other student alone must not make another small network.
        baseline = replace(
            arms(settings)["baseline"],
            steps=settings.small_steps,
            small=None,
            keep_floor=None,
            keep_last=1.0,
        )
        digest = self.digest(student, baseline)
        trained = self.train(
            student,
            baseline,
            _part_of(baseline.plan(), SMALL_SHARE),
            folder=folder / digest[:16],
            digest=digest,
            progress=progress,
        )
        return Trial(student, trained)

    def train(
        self,
        student: Student,
        settings: ArchOverfittingSettings,
        plan: Plan,
        *,
        paths: DroppedPaths | None = None,
        small: Student | None = None,
        folder: Path,
        digest: str,
        progress: Progress | None,
    ) -> Trained:
        """Train one network, in place."""
        seed, device = self.seed, self.device
        draws = Draws(
            self.transfer,
            self.train_on,
            batch=min(settings.batch, max(2, len(self.train_on))),
            real_share=settings.real_share,
            seed=seed,
        )
        generator = torch.Generator(device).manual_seed(seed)
        strengths = settings.augmentation(self.transfer.size)
        weight = settings.kd_weight if small is not None else 0.0

        def batch_loss(network: nn.Module, step: int) -> Tensor:
            rows = draws.at(step)
            choice = np.random.default_rng([seed, step])
            augment = Augment(draw_operations(strengths, settings.operations, choice))
            images = augment(self.pool.images(rows), generator=generator)
            images = images.contiguous(memory_format=torch.channels_last)
            logits: Tensor = network(images)
            if small is None or weight == 0.0:
                return self.label_loss(logits, rows)
            with torch.no_grad():
                answers = small(images)
            taught = weight * kd_kl(logits, answers, temperature=settings.temperature)
            return (
                taught if weight == 1.0 else taught + (1 - weight) * self.label_loss(logits, rows)
            )

        judge = judge_on(self.pool, self.held_out, is_real(self.transfer), settings.batch)

        def judge_student(network: nn.Module) -> Judgement:
            return judge(network.get_submodule("student"))

        def pace(position: float) -> None:
            if paths is not None:
                floor = settings.floor(paths.blocks.depth)
                last = settings.keep_last
                paths.set_keep(keep_rate(position, total=plan.steps, floor=floor, last=last))

        return train(
            _Training(student, paths),
            batch_loss,
            judge_student,
            plan,
            generators={"batch": generator},
            folder=folder,
            fingerprint=digest,
            seed=seed,
            device=device,
            progress=progress,
            pace=pace,
        )


def _part_of(plan: Plan, share: float) -> Plan:
    """Return the plan with a share of its time, where that is limited."""
    if plan.max_seconds is None:
        return plan
    return replace(plan, max_seconds=share * plan.max_seconds)


def _paths(student: Student, seed: int) -> DroppedPaths:
    """Return the student's training form."""
    with eval_mode(student.network):
        example = probe_input(student.network, channels=student.channels, size=student.size)
        return DroppedPaths(student.network, example, seed=seed)


def _dropped(paths: DroppedPaths, settings: ArchOverfittingSettings) -> dict[str, Any]:
    """Return what is told of DropPath."""
    floor, last = settings.floor(paths.blocks.depth), settings.keep_last
    return {
        "kind": "residual" if paths.blocks.branches else "single_branch",
        "places": len(paths.blocks),
        "depth": paths.blocks.depth,
        "keep_rates": [keep_rate(eighth, total=8, floor=floor, last=last) for eighth in range(7)],
    }
