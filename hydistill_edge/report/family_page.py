"""The page of several students: one self-contained HTML file without script; it links to theirs."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from hydistill_edge import __version__
from hydistill_edge.atomic import write_text
from hydistill_edge.report.family_data import Family, Student
from hydistill_edge.report.family_figures import score_by_cost
from hydistill_edge.report.family_reading import read_family
from hydistill_edge.report.html import Note, environment
from hydistill_edge.report.values import Json
from hydistill_edge.report.wording import (
    listing,
    percent,
    plural,
    points,
    printable,
    verdict,
)


def write_family(summary: Json, out: Path) -> Path:
    """Write the page of several students, whole or not at all.

    Args:
        summary: summary.json of all of them; any of its values may be missing.
        out: the file; the links lead from its folder.
    """
    write_text(out, render_family(read_family(summary)))
    return out


def render_family(family: Family) -> str:
    """Return the page; equal families give equal pages."""
    template = environment().get_template("family.html.j2")
    page = template.render(
        family=family,
        verdict_word=verdict(family.passed),
        sentences=sentences(family),
        notes=collect_notes(family),
        figure=Markup(score_by_cost(family)),
        version=__version__,
    )
    return printable(page)


def sentences(family: Family) -> list[str]:
    """Return what a reader should know first: who was built, who is best, the gaps, the gates."""
    told = [_on_built(family), _on_best(family), _on_small(family), _on_gates(family)]
    return [sentence for sentence in told if sentence]


def collect_notes(family: Family) -> tuple[Note, ...]:
    """Return the reason of every value that is missing, once each."""
    found = [Note("transfer set", text) for text in family.notes]
    if family.small is None:
        found.append(Note("small network", family.small_note))
    for student in family.students:
        found += [Note(student.name, text) for text in _reasons(student)]
    return tuple(note for note in dict.fromkeys(found) if note.text)


def _reasons(student: Student) -> list[str]:
    if student.failure is not None:
        kind, message = student.failure
        return [f"not built: {kind}: {message}"]
    told = []
    if student.network.accuracy is None:
        told.append(f"accuracy: {student.accuracy_note}")
    if student.network.agreement is not None and student.agreement_note:
        told.append(f"agreement: {student.agreement_note}")
    for name, gap in (("small network", student.to_small), ("teacher", student.to_teacher)):
        if gap.note:
            told.append(f"gap to the {name}: {gap.note}")
    if student.best is None:
        told.append(f"int8 artifact: {student.best_note}")
    elif student.best.p50_ms is None:
        told.append(f"latency: {student.best.time_note}")
    elif student.best.advisory:
        told.append(f"latency is advisory, measured on {student.best.on or 'an unknown machine'}")
    return told + [f"not judged here: {what}" for what in student.open]


def _on_built(family: Family) -> str:
    missing = [student for student in family.students if student.failure is not None]
    count = len(family.students)
    if not missing:
        return f"{plural(count, 'student')} of one teacher, from one transfer set."
    names = listing([f"{student.name} ({student.failure[0]})" for student in missing
                     if student.failure is not None])  # fmt: skip
    return f"{count - len(missing)} of {plural(count, 'student')} were built; not built: {names}."


def _on_best(family: Family) -> str:
    scored = [
        (score, student)
        for student in family.students
        if (score := student.network.accuracy if family.by_labels else student.network.agreement)
        is not None
    ]
    if not scored:
        return "No student was evaluated."
    score, best = max(scored, key=lambda row: row[0])
    if not family.by_labels:
        return f"{best.name} decides most like the teacher, in {percent(score)} of cases."
    told = f"{best.name} decides best, correctly in {percent(score)} of cases"
    if family.teacher.accuracy is not None:
        told += f", the teacher in {percent(family.teacher.accuracy)}"
    return f"{told}."


def _on_small(family: Family) -> str:
    if family.small is None:
        return ""
    gaps = [
        f"{student.name} by {points(student.to_small.value)}"
        for student in family.students
        if student.to_small.value is not None
    ]
    told = listing(gaps) or "none was held against it"
    return f"Against the small network {family.small.arch}: {told}."


def _on_gates(family: Family) -> str:
    failed = [student.name for student in family.students if student.passed is False]
    good = [student.name for student in family.students if student.passed is True]
    parts = []
    if good:
        parts.append(f"every gate passed: {listing(good)}")
    if failed:
        parts.append(f"a gate said no: {listing(failed)}")
    told = "; ".join(parts)
    return f"{told[:1].upper()}{told[1:]}." if told else "No student was judged here."
