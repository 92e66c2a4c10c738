"""Reading and writing of lines and JSON against the json module, and what is said of files that are damaged."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from nlt_trainer.errors import DataError
from nlt_trainer.text_files import read_json, read_jsonl, write_json, write_jsonl


def test_json_round_trip_against_the_json_module(tmp_path: Path) -> None:
    value = {"heads": [[0, 1], [1, 3]], "model": "é"}
    write_json(tmp_path / "heads.json", value)
    assert json.loads((tmp_path / "heads.json").read_text(encoding="utf-8")) == value
    assert read_json(tmp_path / "heads.json") == value


def test_write_json_keeps_the_previous_file_when_a_value_has_no_json(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"path": object()})
    assert read_json(path, kind=list) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"{", ": not valid JSON"), (b"{\n\xff", ":2: not UTF-8 .*; save the file as UTF-8")]
)
def test_read_json_refuses_what_is_not_json(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "heads.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}{reason}"):
        read_json(path)


def test_read_json_refuses_another_kind(tmp_path: Path) -> None:
    """Reference: what the file holds; a list is no object, and anything is what was asked for."""
    path = tmp_path / "report.json"
    path.write_text("[1]")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: expected a JSON dict, found list$"):
        read_json(path)
    assert read_json(path, kind=list) == read_json(path, kind=object) == [1]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    """Reference: what Python's utf-8-sig, which some editors write, encodes; lines end as on Windows too."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"_id": "é"}\r\n{"_id": "b"}\r\n'.encode("utf-8-sig"))
    assert list(read_jsonl(path)) == [(1, {"_id": "é"}), (2, {"_id": "b"})]
    path.write_bytes('{\r\n"a": 1}'.encode("utf-8-sig"))
    assert read_json(path) == {"a": 1}


def test_jsonl_round_trip_counts_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert write_jsonl(path, iter([{"_id": "a"}, {"_id": "é"}])) == 2
    with path.open("a", encoding="utf-8") as handle:
        handle.write('\n   \n{"_id": "c"}\n')
    assert list(read_jsonl(path)) == [(1, {"_id": "a"}), (2, {"_id": "é"}), (5, {"_id": "c"})]


def test_a_character_in_two_escapes_is_whole(tmp_path: Path) -> None:
    """Reference: what the json module writes without `ensure_ascii=False` for a character outside the basic plane."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"_id": "\N{OWL}"}))
    assert "\\ud83e" in path.read_text()
    assert list(read_jsonl(path)) == [(1, {"_id": "\N{OWL}"})]


def test_write_jsonl_keeps_the_previous_file_when_the_rows_fail(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"_id": "a"}])
    with pytest.raises(ZeroDivisionError):
        write_jsonl(path, ({"_id": str(1 // number)} for number in (1, 0)))
    assert list(read_jsonl(path)) == [(1, {"_id": "a"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"_id": "b"', "not valid JSON"),
        ('{"_id": "é"}'.encode("latin-1"), "not UTF-8 .*; save the file as UTF-8"),
        (b'["b"]', "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b'{"_id": "' + rb"\uD83D" + b'"}', "not valid JSON .*surrogates not allowed"),
        (b"[" * 100_000, "not valid JSON .nested too deeply"),
        (b'{"_id": ' + b"1" * 5000 + b"}", "not valid JSON .*4300 digits"),
    ],
)
def test_read_jsonl_names_file_line_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"_id": "a"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:3: {reason}") as error:
        list(read_jsonl(path))
    assert error.value.line == 3


def test_a_json_file_of_which_a_value_has_changed_is_refused(tmp_path: Path) -> None:
    """Reference: the object that was written, for every character of the file in which a bit flips.

    A flip may change a space, or make a name of the entry's own name; then the values are still those.
    """
    value = {"seed": 42, "losses": [0.125, -1e-9], "by step": {3: "ä"}, "none": None}
    expected, path = {**value, "by step": {"3": "ä"}}, tmp_path / "training.json"
    write_json(path, value, checksum=True)
    assert read_json(path) == expected
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = read_json(path, remedy="train again")
        except DataError as error:
            refused += "training.json: is not as it was written" in str(error)
            assert "train again" in str(error)
        else:
            assert {name: found.get(name) for name in expected} == expected
    assert refused > 20
    path.write_text(json.dumps({"seed": 43, "checksum": None}))
    with pytest.raises(DataError, match=r"or remove its entry checksum if you have changed the file yourself$"):
        read_json(path)
    path.write_text('{"seed": 43}')
    assert read_json(path) == {"seed": 43}


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: file not found$"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"absent\.json: file not found; run `nlt score` first, which writes it$"):
        read_json(tmp_path / "absent.json", stage="nlt score")
    with pytest.raises(DataError, match=r"absent\.jsonl: file not found$"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


PACKED = gzip.compress(b"".join(b'{"a": %d}\n' % (n * n * 7919) for n in range(999)))


@pytest.mark.parametrize(
    "content",
    [b'{"a": 1}\n', PACKED[:-9], PACKED[:99], PACKED[:200] + b"\0" * 64 + PACKED[264:], PACKED[:-6] + b"\0" * 6],
    ids=["not packed", "cut at its end", "cut early", "zeros inside", "another checksum"],
)
def test_a_damaged_packed_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Reference: gzip's own three kinds of errors; the whole file is read."""
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(PACKED)
    assert len(list(read_jsonl(path))) == 999
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows.jsonl.gz: cannot be unpacked .*; fetch or pack it again$"):
        list(read_jsonl(path))
