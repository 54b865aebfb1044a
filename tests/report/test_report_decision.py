from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hydistill_edge.report.data import Run
from hydistill_edge.report.decision import decide, headline_latency
from hydistill_edge.report.reading import read_run
from hydistill_edge.report.wording import MINUS, THIN


@pytest.fixture(scope="module")
def run(shared_run: Path) -> Run:
    return read_run(shared_run)


def with_artifact(run: Run, place: int, **changes: object) -> Run:
    artifacts = list(run.artifacts)
    artifacts[place] = dataclasses.replace(artifacts[place], **changes)
    return dataclasses.replace(run, artifacts=tuple(artifacts))


def told(run: Run, sentence: int) -> str:
    return decide(run).sentences[sentence].replace(THIN, " ").replace(MINUS, "-")


def test_first_sentence_compares_student_and_teacher(run: Run) -> None:
    assert told(run, 0) == (
        "The student resnet8 (19.6 k parameters, 7.2 % of the teacher's; 480 k "
        "multiply-accumulates, 18.8 % of the teacher's) decides correctly in 97.2 % of cases on "
        "360 labelled images, the teacher resnet20 in 98.6 % (-1.4 points)."
    )


def test_first_sentence_tells_agreement_when_there_are_no_labels(run: Run) -> None:
    student = dataclasses.replace(run.student, accuracy=None, params=None, macs=None)

    sentence = told(dataclasses.replace(run, student=student), 0)

    assert sentence == "The student resnet8 decides like the teacher in 98.1 % of cases."


def test_first_sentence_says_so_when_nothing_was_evaluated(run: Run) -> None:
    student = dataclasses.replace(run.student, accuracy=None, teacher_agreement=None)

    assert "was not evaluated" in told(dataclasses.replace(run, student=student), 0)


def test_second_sentence_names_what_was_not_judged(run: Run) -> None:
    assert told(run, 1) == (
        "2 of 3 artifacts passed every gate; tensorrt int8 for jetson-orin-nano was not judged "
        "here (parity R4 and latency)."
    )


def test_second_sentence_gives_number_limit_and_worst_sample_of_a_failed_gate(run: Run) -> None:
    parity = run.artifacts[0].parity
    rung = next(rung for rung in parity.rungs if rung.rung == "R4")
    bad = dataclasses.replace(rung.gates[1], passed=False, value=12.5, worst="img-7")
    failed = dataclasses.replace(parity, rungs=(dataclasses.replace(rung, gates=(bad,)),))

    sentence = told(with_artifact(run, 0, passed=False, parity=failed), 1)

    assert (
        "onnxruntime int8 for x86-vnni failed at R4 (SNR: 12.5 dB, asked ≥ 20 dB, worst sample "
        "img-7)" in sentence
    )
    assert sentence.startswith("1 of 3 artifacts passed every gate; ")


def test_second_sentence_is_short_when_all_passed(run: Run) -> None:
    assert told(with_artifact(run, 2, passed=True), 1) == "All 3 artifacts passed every gate."


def test_third_sentence_names_the_fastest_on_one_machine(run: Run) -> None:
    assert told(run, 2) == (
        "The fastest artifact is openvino int8 for x86-vnni with p99 0.431 ms per frame and "
        "24.8 kB, on x86_64, 2 of 8 cores, Linux, advisory."
    )


def test_third_sentence_compares_no_times_of_different_machines(run: Run) -> None:
    latency = dataclasses.replace(run.artifacts[0].latency, measured_on="a Raspberry Pi 5")

    sentence = told(with_artifact(run, 0, latency=latency), 2)

    assert "fastest" not in sentence
    assert sentence.count("Measured was") == 2


def test_third_sentence_leaves_out_artifacts_that_failed(run: Run) -> None:
    assert "onnxruntime" in told(with_artifact(run, 1, passed=False), 2)


def test_headline_falls_to_a_percentile_that_the_sample_supports(run: Run) -> None:
    latency = run.artifacts[0].latency
    engine = dataclasses.replace(latency.scopes[0], times={"p50": 0.3, "p90": 0.4, "p99": None})
    artifact = dataclasses.replace(
        run.artifacts[0], latency=dataclasses.replace(latency, scopes=(engine,))
    )

    headline = headline_latency(artifact)

    assert (headline.scope, headline.percentile, headline.ms) == ("engine", "p90", 0.4)


@pytest.mark.parametrize(
    ("passed", "word"), [(True, "passed"), (False, "failed"), (None, "not judged")]
)
def test_verdict_is_the_word_of_the_summary(run: Run, passed: bool | None, word: str) -> None:
    assert decide(dataclasses.replace(run, passed=passed)).verdict == word


def test_verdict_is_failed_when_an_artifact_failed_and_the_summary_is_silent(run: Run) -> None:
    silent = dataclasses.replace(with_artifact(run, 0, passed=False), passed=None)

    assert decide(silent).passed is False


def test_sentences_tell_of_gates_that_only_the_summary_has(run: Run) -> None:
    gate = dataclasses.replace(run.student.gates[0], passed=False, value=0.9)
    drop = dataclasses.replace(run.artifacts[0].gates[0], passed=False, value=1.25)
    student = dataclasses.replace(run.student, gates=(gate,))

    failed = dataclasses.replace(
        with_artifact(run, 0, passed=False, gates=(drop,)), student=student
    )

    assert told(failed, 0).endswith(
        "; it failed agreement on the hold-out: 90.0 %, asked ≥ 95.0 %."
    )
    assert "failed at accuracy (accuracy below the student: 1.25 points, asked ≤ 0.5" in told(
        failed, 1
    )
