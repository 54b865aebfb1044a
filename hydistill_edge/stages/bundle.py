"""Stage bundle: every artifact in one file, with its golden images and its evidence."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hydistill_edge.bundle.golden import golden_files
from hydistill_edge.bundle.manifest import Digests, Golden, InputFormat, Manifest
from hydistill_edge.bundle.model_card import model_card
from hydistill_edge.bundle.pack import SUFFIX, pack
from hydistill_edge.bundle.provenance import PROVENANCE_NAME, provenance, read_source_date_epoch
from hydistill_edge.bundle.provenance import to_json as provenance_json
from hydistill_edge.bundle.reject import Fit, fit_reject
from hydistill_edge.images.resize import RESIZE_RULE
from hydistill_edge.run_directory import clear, digest_of, digest_of_file, read_json
from hydistill_edge.stages import artifacts
from hydistill_edge.stages.artifacts import Built
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets.parity import run_in_batches

EVIDENCE = ("calibration.json", "parity.json", "latency.json")
"""Files of an artifact's folder that travel as evidence."""


def run(work: Work) -> None:
    """Write bundle/<name>-<version>-<artifact>.hydistill for every artifact."""
    section = work.recipe.bundle
    made = [f"{stage}.{p.key}" for p in work.planned for stage in ("targets", "parity", "latency")]
    judged = ["evaluation"] if work.recipe.evaluation else []
    told = [work.recipe.name, section.model_dump(), [p.judged_facts for p in work.planned]]
    inputs = work.inputs(told, after=("student", "images", *made, *judged))

    def make(folder: Path) -> None:
        clear(folder)
        for done, planned in enumerate(work.planned):
            work.report("bundle", done, len(work.planned), {})
            name = f"{work.recipe.name}-{section.version}-{planned.key}{SUFFIX}"
            _pack(work, planned, folder / name)

    work.run.folder_stage("bundle", inputs, "bundle", make)
    work.report("bundle", len(work.planned), len(work.planned), {})


def _pack(work: Work, planned: Planned, out: Path) -> None:
    built = artifacts.read(work, planned)
    golden, table = _golden(work, built)
    fit = _fit_reject(work, built)
    manifest = _manifest(work, built, table, fit)
    contents: dict[str, bytes | Path] = {**golden}
    for entry in built.facts["files"]:
        contents[f"model/{entry['path']}"] = built.folder / entry["path"]
    for name in EVIDENCE:
        if (built.folder / name).exists():
            contents[f"evidence/{name}"] = built.folder / name
    if work.path("evaluation.json").exists():
        contents["evidence/evaluation.json"] = work.path("evaluation.json")
    contents["device.yaml"] = _profile_text(planned)
    contents[PROVENANCE_NAME] = _provenance(work, built, manifest)
    contents["model_card.md"] = _card(work, built, manifest)
    pack(contents, manifest, out)


def _golden(work: Work, built: Built) -> tuple[dict[str, bytes], Golden]:
    transfer, rows = work.transfer, work.partition.golden
    images = transfer.images(rows)
    own = None
    if built.simulated_by is None:
        with built.open() as runner:
            own = run_in_batches(runner.run, images, built.planned.profile.batch)
    return golden_files(
        images,
        ids=[transfer.ids[int(row)] for row in rows],
        origins=[str(origin) for origin in transfer.origins[rows]],
        may_ship=[bool(allowed) for allowed in transfer.may_ship[rows]],
        student_logits=network_logits(work.student, images),
        artifact_logits=own,
        note=built.facts["note"],
    )


def _fit_reject(work: Work, built: Built) -> Fit:
    """Fit on held-out real images: not trained on, and no int8 range was taken from them."""
    file = work.path("student", "holdout.json")
    calibration = built.folder / "calibration.json"
    seen = set(read_json(calibration)["ids"] if calibration.exists() else ())
    held_out = read_json(file)["rows"] if file.exists() else []
    transfer = work.transfer
    rows = np.array([row for row in held_out if transfer.ids[row] not in seen], np.int64)
    labels = transfer.labels[rows]
    labelled = bool(len(rows)) and bool((labels >= 0).all())
    classes = work.recipe.class_names()
    logits = np.empty((0, len(classes)), np.float32)
    if len(rows):
        with built.open() as runner:
            batch = built.planned.profile.batch
            logits = run_in_batches(runner.run, transfer.images(rows), batch)
    return fit_reject(
        logits,
        labels if labelled else transfer.pseudo_labels[rows],
        origins=transfer.origins[rows],
        classes=classes,
        fitted_on="labels" if labelled else "teacher",
    )


def _manifest(work: Work, built: Built, golden: Golden, fit: Fit) -> Manifest:
    planned, section = built.planned, work.recipe.bundle
    height, width, channels = work.recipe.image_size()
    scheme = built.facts["scheme"]
    return Manifest(
        name=work.recipe.name,
        version=section.version,
        target=planned.target,
        device=planned.profile.name,
        precision=planned.precision,
        entry=f"model/{built.facts['files'][0]['path']}",
        input=InputFormat(height, width, channels, RESIZE_RULE),
        batch=planned.profile.batch,
        threads=planned.profile.threads,
        classes=work.recipe.class_names(),
        golden=golden,
        digests=_digests(work, built),
        tools=_tools(work),
        scheme=scheme["name"] if scheme else None,
        reject=fit.reject,
        reject_note="" if fit.reject else fit.why,
        license=section.license,
        note=built.facts["note"],
    )


def _digests(work: Work, built: Built) -> Digests:
    calibration = built.folder / "calibration.json"
    return Digests(
        student=read_json(work.path("student", "facts.json"))["digest"],
        teacher=read_json(work.path("teacher.json"))["digest"],
        transfer=read_json(work.path("transfer", "manifest.json"))["digest"],
        graph=digest_of_file(work.path("graph", built.planned.graph)),
        calibration=read_json(calibration)["digest"] if calibration.exists() else None,
    )


def _tools(work: Work) -> dict[str, str]:
    found = read_json(work.path("environment.json"))
    packages = {name: version for name, version in found["packages"].items() if version}
    return {"hydistill-edge": found["hydistill_edge"], "python": found["python"], **packages}


def _provenance(work: Work, built: Built, manifest: Manifest) -> bytes:
    recipe = work.recipe
    subjects = {f"model/{entry['path']}": entry["sha256"] for entry in built.facts["files"]}
    return provenance_json(
        provenance(
            subjects=subjects,
            digests=manifest.digests,
            target=manifest.target,
            device=manifest.device,
            precision=manifest.precision,
            tools=manifest.tools,
            seeds={"distill": recipe.seed, "label": recipe.seed},
            scheme=built.facts["scheme"],
            parameters={"method": recipe.method, "recipe": digest_of(_without_paths(recipe))},
            source_date_epoch=read_source_date_epoch(os.environ),
        )
    )


def _without_paths(recipe: Any) -> Any:
    """Return the recipe's sections that decide what comes out, wherever the files lie."""
    plain = recipe.to_dict()
    return {name: plain[name] for name in ("method", "training", "targets", "calibration", "seed")}


def _profile_text(planned: Planned) -> bytes:
    plain = json.loads(json.dumps(dataclasses.asdict(planned.profile)))
    return yaml.safe_dump(plain, sort_keys=True, allow_unicode=True).encode()


def _card(work: Work, built: Built, manifest: Manifest) -> bytes:
    def evidence(path: Path) -> Any:
        return read_json(path) if path.exists() else None

    text = model_card(
        manifest,
        description=work.recipe.bundle.description,
        method=work.recipe.method,
        teacher=read_json(work.path("teacher.json")),
        student=read_json(work.path("student", "facts.json")),
        origins=read_json(work.path("transfer", "manifest.json"))["per_origin"],
        parity=evidence(built.folder / "parity.json"),
        latency=evidence(built.folder / "latency.json"),
        calibration=evidence(built.folder / "calibration.json"),
        evaluation=evidence(work.path("evaluation.json")),
    )
    return text.encode()
