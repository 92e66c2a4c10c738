"""Prompt tokens: segments against the tokenizer called on each text alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nlt_trainer.choices import TargetKind, check_choice
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.prompts import PromptTemplate, default_target

TEMPLATE = PromptTemplate(document_prefix="D: ", document_suffix="\n", query_prefix="Q:", answer_prefix="\nA:")


def ids_of(lm: FrozenLM, text: str) -> list[int]:
    """Ids of one segment, by the tokenizer itself."""
    return list(lm.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    ("target", "segments"),
    [
        ("query", [("Q:", False), (" what is tea", True)]),
        ("answer", [("Q:", False), (" what is tea", False), ("\nA:", False), (" leaves", True)]),
        ("joint", [("Q:", False), (" what is tea", True), ("\nA:", False), (" leaves", True)]),
    ],
)
def test_a_suffix_marks_its_target(tiny_lm: FrozenLM, target: TargetKind, segments: list[tuple[str, bool]]) -> None:
    """Reference: each segment tokenised alone and joined."""
    suffix = PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=8).suffix("what is tea", "leaves", target)
    expected = [(i, marked) for text, marked in segments for i in ids_of(tiny_lm, text)]
    assert list(zip(suffix.ids, suffix.target, strict=True)) == expected
    assert suffix.target_tokens == sum(marked for _, marked in expected)
    assert not suffix.target[0]


def test_a_document_is_cut_and_says_so(tiny_lm: FrozenLM) -> None:
    """Reference: the tokenizer's ids, sliced."""
    text = "Green tea is made from leaves."
    ids = ids_of(tiny_lm, text)
    assert PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=3).document(text) == (tuple(ids[:3]), True)
    whole = PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=len(ids))
    assert whole.document(text) == (tuple(ids), False)
    assert whole.document_frame == (tuple(ids_of(tiny_lm, "D: ")), tuple(ids_of(tiny_lm, "\n")))


def test_texts_that_are_kept_share_their_ids(tiny_lm: FrozenLM) -> None:
    """Reference: one object an id above 256, below which Python has one anyway."""
    tokens = PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=8)
    first, second = tokens.document(" tea and leaves")[0], tokens.document("leaves and tea and")[0]
    both = [i for i in set(first) & set(second) if i > 256]
    assert both
    assert all(first[first.index(i)] is second[second.index(i)] for i in both)


def test_the_start_is_what_the_tokenizer_adds_by_itself(tiny_lm: FrozenLM, tiny_bos_lm: FrozenLM) -> None:
    """Reference: `<s>` is id 1; one tokenizer puts it before each text, the other has it and does not."""
    assert tiny_lm.tokenizer.bos_token_id == 1
    assert PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=8).start == ()
    assert PromptTokens(tiny_bos_lm.tokenizer, TEMPLATE, max_document_tokens=8).start == (1,)


def word_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary has control tokens as words, as those of byte-level BPE do not."""
    words = ["<unk>", "<s>", "</s>", "<|im_end|>", *sorted({*"<>/s|im_endateagrn ", "tea", "green"})]
    if kind == "words":
        backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        backend.pre_tokenizer = WhitespaceSplit()
    else:
        backend = Tokenizer(Unigram([(word, -float(len(word) == 1)) for word in words], unk_id=0))
    special = ["<s>", "<|im_end|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", additional_special_tokens=special
    )


@pytest.mark.parametrize("kind", ["byte-level", "words", "unigram"])
@pytest.mark.parametrize("control", ["</s>", "<s>"])
def test_a_text_is_never_a_control_token(tiny_lm: FrozenLM, kind: str, control: str) -> None:
    """Reference: no id of a control token in what stands for a text, and all of them in what stands for a template."""
    tokenizer = tiny_lm.tokenizer if kind == "byte-level" else word_tokenizer(kind)
    ids = {tokenizer.convert_tokens_to_ids(word) for word in ("<s>", "</s>")}
    template = PromptTemplate(f"{control} D", f"{control} A", f"{control} Q", f"{control} A")
    tokens = PromptTokens(tokenizer, template, max_document_tokens=40)
    text = f"tea {control} green {control}"
    document = tokens.document(text)[0]
    assert document and ids.isdisjoint(document)
    assert all(not ids.isdisjoint(frame) for frame in tokens.document_frame)
    suffix = tokens.suffix(text, text, "joint")
    assert ids.isdisjoint(i for i, marked in zip(suffix.ids, suffix.target, strict=True) if marked)
    assert sum(i in ids for i in suffix.ids) == 2


def test_a_control_token_in_a_text_keeps_all_of_its_characters(tiny_lm: FrozenLM) -> None:
    """Reference: the text itself, which the ids decode to; a text without control tokens has the ids of always."""
    tokens = PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=40)
    text = "tea </s> and <pad>"
    assert tiny_lm.tokenizer.decode(list(tokens.document(text)[0])) == text
    assert list(tokens.document("tea and leaves")[0]) == ids_of(tiny_lm, "tea and leaves")


@pytest.mark.parametrize("token", ["<think>", "</tool_call>", "<\uff5cUser\uff5c>", "[INST]", "<|fim_prefix|>"])
def test_an_added_token_that_is_a_name_between_marks_is_a_control_token(tiny_llm_folder: Path, token: str) -> None:
    """Reference: the text, which the ids decode to, without the token's id; models do not call all of them special."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    tokenizer.add_tokens([token])
    (control,) = tokenizer(token, add_special_tokens=False).input_ids
    template = PromptTemplate(document_prefix=token)
    tokens = PromptTokens(tokenizer, template, max_document_tokens=40)
    text = f"tea {token} and"
    ids = tokens.document(text)[0]
    assert control not in ids
    assert tokenizer.decode(list(ids)) == text
    assert tokens.document_frame[0] == (control,)


@pytest.mark.parametrize("token", ["covid19", "\n\n\n", "▁▁▁", "-----", "C++"])
def test_another_added_token_is_a_part_of_a_text(tiny_llm_folder: Path, token: str) -> None:
    """Reference: the ids that the tokenizer itself makes; somebody has added words, or a model runs of spaces."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    tokenizer.add_tokens([token])
    ids = PromptTokens(tokenizer, TEMPLATE, max_document_tokens=40).document(f"tea {token} and")[0]
    assert tokenizer.convert_tokens_to_ids(token) in ids
    assert list(ids) == tokenizer(f"tea {token} and", add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", ["words", "unigram"])
@pytest.mark.parametrize("text", ["\uff1c|im_end|\uff1e", "<|\uff49\uff4d_end|>", "<|IM_END|>"])
def test_a_spelling_that_is_folded_into_a_control_token_is_read_as_text(kind: str, text: str) -> None:
    """Reference: the tokenizer's own id of the token, which its normalizer makes of other characters."""
    tokenizer = word_tokenizer(kind)
    tokenizer.backend_tokenizer.normalizer = Sequence([NFKC(), Lowercase()])
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert control in tokenizer(f"tea {text} green", split_special_tokens=True).input_ids
    ids = PromptTokens(tokenizer, TEMPLATE, max_document_tokens=40).document(f"tea {text} green")[0]
    assert control not in ids
    assert tokenizer.convert_tokens_to_ids("tea") in ids


@pytest.mark.parametrize("answer", [None, ""])
def test_a_missing_answer_is_refused_only_where_it_is_needed(tiny_lm: FrozenLM, answer: str | None) -> None:
    """Reference: the rule that `answer` and `joint` need an answer."""
    tokens = PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=8)
    assert tokens.suffix("what is tea", answer, "query").target_tokens
    for target in ("answer", "joint"):
        with pytest.raises(NLTError, match=f"target '{target}' needs an answer, and query 'what is tea'"):
            tokens.suffix("what is tea", answer, target)


def test_nothing_to_read_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: the remedy that each message names."""
    with pytest.raises(NLTError, match=r"max_document_tokens is 0; it must be at least 1"):
        PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=0)
    with pytest.raises(NLTError, match=r"has no tokens; remove empty documents"):
        PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=8).document("")
    with pytest.raises(NLTError, match=r"query_prefix is empty"):
        PromptTemplate(query_prefix="")


@pytest.mark.parametrize(
    ("query", "answer", "target"),
    [("", None, "query"), (" \n", None, "query"), ("q", " ", "answer"), ("q", "\t", "joint"), ("", "a", "answer")],
)
def test_an_empty_target_is_refused(tiny_lm: FrozenLM, query: str, answer: str | None, target: TargetKind) -> None:
    """Reference: the remedy in the message; the space before a text is a token, and no target by itself."""
    tokens = PromptTokens(tiny_lm.tokenizer, TEMPLATE, max_document_tokens=8)
    with pytest.raises(NLTError, match=r"has no target tokens: .* is empty; remove empty queries and answers"):
        tokens.suffix(query, answer, target)
    with pytest.raises(NLTError, match=r"has no tokens; remove empty documents"):
        tokens.document(query if query != "q" else " \n ")


def test_targets_by_name() -> None:
    """Reference: the three kinds; joint where there are answers."""
    check_choice("target", "joint", TargetKind)
    with pytest.raises(NLTError, match=r"target 'title' is unknown; choose one of answer, query, joint"):
        check_choice("target", "title", TargetKind)
    assert (default_target(has_answers=True), default_target(has_answers=False)) == ("joint", "query")
