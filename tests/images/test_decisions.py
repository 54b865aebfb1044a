"""What people decided on single images."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydistill_edge.errors import MissingFileError, UsageError
from hydistill_edge.images.decisions import read_decisions, write_decisions

CSV = 'id,decision,score\nweb:1,Accept,0.4\n"web:2, old",reject,\nweb:3,,0.2\nweb:4,delete,\n'
JSON = '{"web:1": "accept", "web:2, old": "reject", "web:3": "", "web:4": "delete"}'
LIST = '[{"id": "web:4", "decision": "delete"}, {"id": "web:3"}]'


@pytest.mark.parametrize(
    ("name", "text"),
    [("d.csv", CSV), ("d.csv", "\ufeff" + CSV), ("d.json", JSON)],
    ids=["csv", "marked", "json"],
)
def test_decisions_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    decisions = read_decisions(tmp_path / name)
    assert decisions.ids("accept") == ["web:1"]
    assert decisions.ids("reject", "delete") == ["web:2, old", "web:4"]
    assert decisions.undecided == 1


def test_list_of_objects_is_read(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(LIST)
    assert read_decisions(tmp_path / "d.json").by_id == {"web:4": "delete"}


def test_digest_is_of_the_decisions_and_not_of_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,decision\nx,accept\ny,reject\n")
    (tmp_path / "b.csv").write_text("id,decision\ny,reject\nz,\nx,accept\n")
    (tmp_path / "c.csv").write_text("id,decision\ny,accept\nx,accept\n")
    first, same, other = (read_decisions(tmp_path / name).digest for name in
                          ("a.csv", "b.csv", "c.csv"))  # fmt: skip
    assert first == same
    assert first != other


def test_sheet_that_was_written_reads_back_undecided(tmp_path: Path) -> None:
    odd = "web:caf\udce9, 1.png"
    write_decisions(tmp_path / "d.csv", [{"id": odd, "score": 0.4}, {"id": "web:2", "score": 0.2}])
    assert read_decisions(tmp_path / "d.csv").undecided == 2
    text = (tmp_path / "d.csv").read_bytes().replace(b'",,', b'",reject,')
    (tmp_path / "d.csv").write_bytes(text)
    assert read_decisions(tmp_path / "d.csv").by_id == {odd: "reject"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.csv", "id,decision\nx,maybe\n", r"line 2: decision 'maybe'; expected accept, reject"),
        ("d.csv", "id,decision\nx,accept\nx,reject\n", "line 3: the id 'x' stands twice"),
        ("d.csv", "name,decision\n", "first line is name, decision"),
        ("d.csv", 'id,decision\n"' + 200_000 * "x", "no CSV table .*save the sheet again"),
        ("d.json", "{", "not JSON"),
        ("d.json", "[1]", "entry 0: expected an object"),
    ],
    ids=["word", "twice", "columns", "open quote", "json", "entry"],
)
def test_file_is_refused_when_it_is_no_table(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        read_decisions(tmp_path / name)


def test_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="hydistill review RUN"):
        read_decisions(tmp_path / "d.csv")
