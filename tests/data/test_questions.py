"""Rows of question-answer sets with the columns that well-known sets have."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nlt_trainer.data.questions import Columns, hash_of, read_question, text_of, value_at
from nlt_trainer.errors import NLTError

HOTPOT: dict[str, Any] = {
    "id": "5a7a",
    "question": " Who? ",
    "answer": "yes",
    "context": {"title": ["A", "B", "C"], "sentences": [["One.", " Two."], ["Three."], []]},
    "supporting_facts": {"title": ["B", "B", "Z"], "sent_id": [0, 1, 0]},
}
HOTPOT_COLUMNS = Columns(
    answer="answer", passage="context.sentences", title="context.title", gold="supporting_facts.title", id="id"
)
ITEMS = [{"title": t, "sentences": s} for t, s in zip(*HOTPOT["context"].values(), strict=True)]


@pytest.mark.parametrize("context", [HOTPOT["context"], ITEMS], ids=["dict of lists", "list of dicts"])
def test_sentences_become_passages_and_titles_name_gold(context: Any) -> None:
    """Reference: written out by hand; both forms in which the datasets library returns such a column."""
    question = read_question({**HOTPOT, "context": context}, HOTPOT_COLUMNS)
    assert (question.id, question.text, question.answer) == ("5a7a", "Who?", "yes")
    assert [(p.title, p.text) for p in question.passages] == [("A", "One. Two."), ("B", "Three."), ("C", "")]
    assert question.gold == (False, True, False)
    assert question.passages[0].id == f"p{hash_of('A' + chr(10) + 'One. Two.'):016x}"


def test_marks_name_gold() -> None:
    """Reference: the columns of MS MARCO; an empty passage is left out together with its mark."""
    row = {
        "query": "why",
        "answers": ["", "because"],
        "passages": {"passage_text": ["x", " ", "y"], "is_selected": [0, 1, 1]},
    }
    columns = Columns("query", "answers", "passages.passage_text", gold="passages.is_selected")
    question = read_question(row, columns)
    assert ([p.text for p in question.passages], question.gold, question.answer) == (
        ["x", "y"],
        (False, True),
        "because",
    )


def test_one_passage_is_gold_and_the_id_is_a_hash_of_the_text() -> None:
    """Reference: the columns of SQuAD; equal texts have equal ids, whatever row they stand in."""
    row = {
        "title": "T",
        "context": "Long.",
        "question": "Who?",
        "answers": {"text": ["he", "him"], "answer_start": [0]},
    }
    columns = Columns(answer="answers.text", passage="context", title="title")
    question = read_question(row, columns)
    assert (question.answer, question.gold) == ("he", (True,))
    assert (question.passages[0].title, question.passages[0].text) == ("T", "Long.")
    again = read_question({**row, "title": "T ", "answers": {"text": []}}, columns)
    assert (again.id, again.passages, again.answer) == (question.id, question.passages, None)
    assert read_question({"question": None}, Columns()).text == ""


def test_rows_that_do_not_fit_are_refused() -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=r"no column 'context.text' in a row: 'text' is not among title, sentences"):
        read_question(HOTPOT, Columns(passage="context.text"))
    with pytest.raises(NLTError, match=r"no column 'question.x' in a row: 'x' is not among str"):
        value_at(HOTPOT, "question.x")
    with pytest.raises(NLTError, match=re.escape("a row has 3 passages in 'context.sentences' and 2 titles")):
        read_question({**HOTPOT, "names": ["A", "B"]}, Columns(passage="context.sentences", title="names"))
    with pytest.raises(NLTError, match=re.escape("a row has 3 passages and 2 marks in 'marks'")):
        read_question({**HOTPOT, "marks": [1, 0]}, Columns(passage="context.sentences", gold="marks"))


def test_a_column_whose_name_has_a_dot_is_found_first() -> None:
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


def test_values_that_are_no_text_are_none_or_refused() -> None:
    """Reference: pandas writes a missing text as NaN; a number is a text, and an object is not."""
    values: list[Any] = [float("nan"), None, " x ", 0, [" one", None, ["two"]]]
    assert [text_of(value) for value in values] == ["", "", "x", "0", "one two"]
    with pytest.raises(NLTError, match=r"found an object where a text belongs: \{'en': 'tea'\}"):
        text_of({"en": "tea"})
