"""Queries that a tiny LLM writes: what they depend on, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nlt_trainer.data.beir import Document
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.queries.prompts import EXAMPLES, KINDS, prompt_end, prompt_start
from nlt_trainer.queries.writer import MAX_NEW_TOKENS, TEMPERATURE, TOP_P, Job, QueryWriter, SeededChoice
from nlt_trainer.queries.written_texts import WrittenTexts

TEXTS = ("The blue whale is large.", "A honey bee visits many flowers and carries pollen back.", "Tea is green. Yes.")
JOBS = [Job(kind, Document(f"{n}", "", text)) for n, text in enumerate(TEXTS) for kind in ("question", "title")]


@pytest.fixture
def lm(tiny_lm: FrozenLM) -> FrozenLM:
    """The tiny LLM with room for the examples."""
    tiny_lm.model.config.max_position_embeddings = 4096
    return tiny_lm


def test_texts_depend_neither_on_the_batch_nor_on_the_order(lm: FrozenLM) -> None:
    """Reference: each text written alone; all differ, since each has a seed of its own."""
    alone = [QueryWriter(lm, batch_size=1).write([job])[0] for job in JOBS]
    assert QueryWriter(lm, batch_size=4).write(JOBS) == alone
    assert QueryWriter(lm, batch_size=2).write(JOBS[::-1]) == alone[::-1]
    assert len(set(alone)) == len(alone)
    assert QueryWriter(lm, seed=1).write(JOBS) != alone


def test_the_prompt_is_the_examples_the_passage_and_the_label(lm: FrozenLM) -> None:
    """Reference: the LLM read token by token on the whole prompt, with temperature, nucleus and choice by hand."""
    job, writer = JOBS[2], QueryWriter(lm)
    text = f"{prompt_start(job.kind)} {job.passage.content}"
    ids = lm.tokenizer(text).input_ids + lm.tokenizer(prompt_end(job.kind)).input_ids
    generator = torch.Generator().manual_seed(int(writer._key(job), 16) % 2**63)
    written: list[int] = []
    while len(written) < MAX_NEW_TOKENS and "\n" not in lm.tokenizer.decode(written):
        with torch.no_grad():
            probabilities = (lm.model(torch.tensor([ids + written])).logits[0, -1] / TEMPERATURE).softmax(-1)
        values, order = probabilities.sort(descending=True)
        probabilities[order[values.cumsum(0) - values >= TOP_P]] = 0
        noise = torch.empty(len(probabilities)).exponential_(generator=generator)
        written.append(int((probabilities / noise).argmax()))
    expected = str(lm.tokenizer.decode(written))
    (found,) = writer.write([job])
    assert found.rstrip("\n") == expected.partition("\n")[0]
    assert found.endswith("\n") == ("\n" in expected)


def test_a_choice_is_a_sample_of_the_softmax() -> None:
    """Reference: the probabilities of three tokens over 4000 seeds, within four standard errors; rows are alike."""
    logits = torch.tensor([1.0, 0.0, -1.0])
    chosen = SeededChoice(range(4000))(torch.zeros(4000, 1), logits.expand(4000, 3)).argmax(1)
    found = torch.bincount(chosen, minlength=3) / 4000
    torch.testing.assert_close(found, logits.softmax(0), atol=4 * 0.5 / 4000**0.5, rtol=0)
    again = SeededChoice([7, 3])(torch.zeros(2, 1), logits.expand(2, 3)).argmax(1)
    assert again.tolist() == chosen[[7, 3]].tolist()


def test_special_tokens_in_a_passage_are_plain_text(lm: FrozenLM) -> None:
    """Reference: the ids of the special tokens, which no prompt has after its start."""
    ids = QueryWriter(lm)._prompt(Job("question", Document("a", "", "Say </s> or <s> and <pad> here.")))
    assert not set(ids) & set(lm.tokenizer.all_special_ids)


def test_a_text_begins_as_the_tokenizer_begins_texts(tiny_bos_lm: FrozenLM) -> None:
    """Reference: the one token that this tokenizer puts before a text; none after it."""
    before, after = QueryWriter(tiny_bos_lm)._tokenised_frame("title")
    special = set(tiny_bos_lm.tokenizer.all_special_ids)
    assert before[0] == tiny_bos_lm.tokenizer.bos_token_id
    assert not special & {*before[1:], *after}


def test_a_long_passage_is_cut_and_a_long_prompt_refused(lm: FrozenLM) -> None:
    """Reference: tokens of the passage; the numbers in the message."""
    job = Job("claim", Document("a", "", "whale " * 300))
    after = lm.tokenizer(prompt_end("claim")).input_ids
    assert len(QueryWriter(lm, max_document_tokens=10)._prompt(job)) == 10 + len(after)
    lm.model.config.max_position_embeddings = 64
    with pytest.raises(NLTError, match=r"do not fit the 64 tokens of LLM .*lower max_document_tokens"):
        QueryWriter(lm).write([job])


def test_what_is_written_is_not_written_again(lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the texts of the first call, and the number of texts that a call generates after a stop."""
    path = tmp_path / "folder" / "written.jsonl"
    first = QueryWriter(lm, batch_size=2, file=path).write(JOBS)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(JOBS)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # as a stop amid a line leaves it
    generated: list[int] = []
    plain = QueryWriter._generate

    def counted(self: QueryWriter, kind: str, prompts: list[list[int]], *, seeds: list[int]) -> list[str]:
        generated.append(len(prompts))
        return plain(self, kind, prompts, seeds=seeds)

    monkeypatch.setattr(QueryWriter, "_generate", counted)
    assert QueryWriter(lm, batch_size=8, file=path).write(JOBS) == first
    assert sum(generated) == len(JOBS) - 3
    assert QueryWriter(lm, file=path).write(JOBS) == first
    assert sum(generated) == len(JOBS) - 3
    QueryWriter(lm, file=path, max_document_tokens=2).write(JOBS[:1])  # another prompt
    assert sum(generated) == len(JOBS) - 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"key": "a", "text": "b"}\nno json\n', ":2: not valid JSON"),
        ('{"key": "a", "text": "b"}\n{"key": "c"}\n{"key": "d', ":2: is not what `nlt make_queries` writes; move"),
        ('{"_id": "a", "text": "b"}\n', ":1: is not what `nlt make_queries` writes; move"),
        ("notes without the end of a line", ":1: is not what `nlt make_queries` writes; move"),
        ("\nnotes", ":1: is not what `nlt make_queries` writes; move"),
    ],
)
def test_a_file_of_something_else_is_refused(content: str, message: str, tmp_path: Path) -> None:
    """Reference: file and line in the message, and the content of the file."""
    (tmp_path / "written.jsonl").write_text(content)
    with pytest.raises(DataError, match=f"written.jsonl{message}"):
        WrittenTexts(tmp_path / "written.jsonl")
    assert (tmp_path / "written.jsonl").read_text() == content


@pytest.mark.parametrize("left", ["", "{", '{"key": "a', '{"key": "a", "text": "b"}'])
def test_half_a_first_line_is_removed(left: str, tmp_path: Path) -> None:
    """Reference: the file of a batch that stopped before its first line was whole; writing goes on."""
    (tmp_path / "written.jsonl").write_text(left)
    WrittenTexts(tmp_path / "written.jsonl").add({"c": "d"})
    assert WrittenTexts(tmp_path / "written.jsonl").texts == {"c": "d"}


def test_every_example_has_every_kind() -> None:
    """Reference: the table of kinds; a passage has no line that a prompt ends with."""
    for example in EXAMPLES:
        assert set(example) == {"passage", *KINDS}
        assert not any(label in example["passage"] for label in KINDS.values())
        assert all("\n" not in example[kind] for kind in KINDS)
