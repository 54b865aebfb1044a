from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hydistill_edge.errors import MissingFileError, RunDirectoryError
from hydistill_edge.report.reading import read_run
from hydistill_edge.report.values import flat, number, numbers, text

RunMaker = Callable[..., Path]


def change(path: Path, **values: object) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | values), encoding="utf-8")


def test_run_is_read_whole_when_every_file_is_there(shared_run: Path) -> None:
    run = read_run(shared_run)

    assert (run.name, run.passed, run.problems) == ("digits", True, ())
    assert (run.teacher.accuracy, run.student.params) == (0.986, 19_600)
    assert [artifact.title for artifact in run.artifacts] == [
        "onnxruntime int8 for x86-vnni",
        "openvino int8 for x86-vnni",
        "tensorrt int8 for jetson-orin-nano",
    ]
    assert [scope.name for scope in run.artifacts[0].latency.scopes] == ["engine", "frame"]
    assert len(run.pictures.strips) == 10


def test_artifact_is_found_by_its_folder_when_the_summary_is_missing(make_run: RunMaker) -> None:
    folder = make_run()
    (folder / "summary.json").unlink()

    run = read_run(folder)

    last = run.artifacts[-1]
    assert (run.name, run.passed) == ("run", None)
    assert (last.target, last.device, last.precision) == ("tensorrt", "jetson-orin-nano", "int8")
    assert last.parity is not None
    assert last.passed is None


def test_broken_file_is_a_problem_and_not_an_error(make_run: RunMaker) -> None:
    folder = make_run()
    (folder / "evaluation.json").write_text('{"models": [', encoding="utf-8")

    run = read_run(folder)

    assert run.scores == ()
    assert len(run.problems) == 1
    assert run.problems[0].startswith("evaluation.json could not be read: ")


def test_values_of_a_wrong_type_read_as_not_measured(make_run: RunMaker) -> None:
    folder = make_run()
    change(
        folder / "summary.json", passed="yes", student={"params": "many", "macs": True}, artifacts=3
    )

    run = read_run(folder)

    assert (run.passed, run.student.params, run.student.macs) == (None, None, None)
    assert len(run.artifacts) == 3  # from their folders


def test_histogram_is_dropped_when_edges_and_counts_do_not_fit(make_run: RunMaker) -> None:
    folder = make_run()
    home = folder / "targets/onnxruntime-x86-vnni-int8"
    change(
        home / "latency.json", scopes={"engine": {"histogram": {"edges_ms": [1], "counts": [1]}}}
    )

    scope = read_run(folder).artifacts[0].latency.scopes[0]

    assert (scope.edges_ms, scope.counts, scope.n) == ((), (), None)


def test_gates_of_the_summary_are_kept_where_latency_does_not_have_them(shared_run: Path) -> None:
    artifact = read_run(shared_run).artifacts[0]

    assert [gate.name for gate in artifact.latency.gates] == ["p90, bounded"]
    assert [gate.name for gate in artifact.gates] == ["accuracy below the student"]


def test_notes_beside_null_values_are_kept(make_run: RunMaker) -> None:
    folder = make_run()
    change(folder / "summary.json", teacher={"accuracy": None, "accuracy_note": "no labels"})

    assert read_run(folder).teacher.notes == ("no labels",)


def test_simulated_parity_says_who_ran_it(shared_run: Path) -> None:
    assert read_run(shared_run).artifacts[-1].parity.note == "simulated by onnxruntime"


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere is no folder; expected a run directory"):
        read_run(tmp_path / "nowhere")


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds none of a run's files"):
        read_run(tmp_path)


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), [1], {"a": 1}])
def test_number_is_none_when_the_value_is_no_finite_number(value: object) -> None:
    assert number({"key": value}, "key") is None


def test_numbers_are_empty_when_one_is_none() -> None:
    assert numbers({"key": [1, None]}, "key") == ()
    assert numbers({"key": [1, 2.5]}, "key") == (1, 2.5)


def test_text_is_empty_for_containers() -> None:
    assert [text({"key": value}, "key") for value in (None, {}, [], 3, "a")] == [
        "",
        "",
        "",
        "3",
        "a",
    ]


def test_flat_joins_nested_keys_and_drops_nulls() -> None:
    nested = {
        "cpu_name": "x",
        "runtime": {"version": 2},
        "cores": [0, 1],
        "pinned": True,
        "gpu": None,
    }

    assert flat(nested) == {
        "cpu name": "x",
        "runtime version": "2",
        "cores": "0, 1",
        "pinned": "yes",
    }
