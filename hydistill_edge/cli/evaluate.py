"""`hydistill evaluate`: accuracies on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydistill_edge.cli.console import (
    Json,
    percent,
    plain,
    print_json,
    print_warning,
    progress,
    stdout,
    table,
)


def evaluate(
    subject: Annotated[
        Path, typer.Argument(metavar="RUN|BUNDLE", help="A run directory or a .hydistill file.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Labelled images: a folder with one subfolder per class, an .npz or tar shards."
        ),
    ],
    json: Json = False,
) -> None:
    """Measure accuracy, per class and confusion: teacher beside student beside artifacts.

    Example: hydistill evaluate runs/widgets --data holdout/
    """
    from hydistill_edge.evaluation import evaluate as run_evaluation

    with progress(quiet=json) as report:
        result = run_evaluation(subject, data, report=report)
    if json:
        print_json(result)
        return
    seen = bool(result.get("overlap", {}).get("images"))
    made = table(
        "model",
        "accuracy>",
        *(["unseen images>"] * seen),
        "worst class>",
        "ROC-AUC>",
        "agrees with teacher>",
    )
    for model in result["models"]:
        worst = min(
            (entry for entry in model["per_class"] if entry["accuracy"] is not None),
            key=lambda entry: entry["accuracy"],
            default=None,
        )
        made.add_row(
            plain(model["name"]),
            percent(model["accuracy"]),
            *([percent(model["accuracy_without_overlap"])] if seen else []),
            plain(f"{percent(worst['accuracy'])} ({worst['class']})") if worst else "-",
            "-" if model["roc_auc"] is None else f"{model['roc_auc']:.4f}",
            percent(model["agreement_with_teacher"]),
        )
    console = stdout()
    console.print(made)
    console.print(f"{result['images']} images; confusion matrices: --json")
    print_warning(result.get("overlap", {}).get("note", ""))
