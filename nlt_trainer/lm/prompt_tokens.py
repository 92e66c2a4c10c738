"""Turn texts into the token ids of a prompt, one segment at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.prompts import PromptTemplate


@dataclass(frozen=True)
class PromptFrame:
    """The parts of an LLM that its prompts are built with. They can be sent to a process without its weights.

    Args:
        name: of the LLM.
        tokenizer: its tokenizer.
        tokenizer_id: equal for tokenizers that make the same tokens of a text.
        context_length: tokens that the LLM reads at most.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    tokenizer_id: str | None
    context_length: int


@dataclass(frozen=True)
class Suffix:
    """What follows the documents in a prompt: the query and, where the target asks for it, the answer.

    Args:
        ids: token ids.
        target: for each id whether it belongs to the target; the first never does.
    """

    ids: tuple[int, ...]
    target: tuple[bool, ...]

    @property
    def target_tokens(self) -> int:
        return sum(self.target)

    @property
    def read(self) -> tuple[int, ...]:
        """The ids that a scorer reads: all but the last one, which ends the target and is only predicted."""
        return self.ids[:-1]


MARKED_NAME = re.compile(r"[^\w\s▁].*\w.*[^\w\s▁]", re.DOTALL)
"""A name between marks, such as `<think>`. Added tokens of another form are words or white space, which texts have."""


class PlainText:
    """Makes token ids of texts of a collection. A text that spells a control token, such as `</s>`, is read as text.

    Control tokens are all special tokens, and of the other added tokens those that are a name between marks. Models
    give a meaning to these too, as Qwen3 does to `<think>`; they are not called special so that decoding shows them.

    Args:
        tokenizer: the LLM's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        control = {i: token.content for i, token in added if token.special or MARKED_NAME.fullmatch(token.content)}
        self._control = {i: token for i, token in control.items() if i != tokenizer.unk_token_id}

    def __call__(self, text: str) -> list[int]:
        """Ids of a text, without those that the tokenizer would put around it."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        spelt = self.spelt(text, ids)
        return [part for i in ids for part in (self._in_two(spelt[i]) if i in spelt else [i])] if spelt else ids

    def spelt(self, text: str, ids: Sequence[int]) -> dict[int, str]:
        """The control tokens, by their ids, that a text spells and that are among the ids made of it.

        Special tokens are among them where the vocabulary itself has them as words, as with Unigram and WordLevel. One
        that the text does not spell is the tokenizer's mark of what it does not know.
        """
        found = self._control.keys() & set(ids)
        if not found:
            return {}
        normalizer = self._tokenizer.backend_tokenizer.normalizer
        read = text if normalizer is None else normalizer.normalize_str(text)  # may make `</s>` of full-width letters
        folded = f"{text}\n{read}".casefold()
        return {i: self._control[i] for i in found if self._control[i].casefold() in folded}

    def _in_two(self, token: str) -> list[int]:
        """Ids of the first character of a control token, and of the rest."""
        return [i for part in (token[:1], token[1:]) if part not in ("", token) for i in self(part)]


def template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a part of a template, whose control tokens, such as `<|im_start|>`, are meant."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False).input_ids
    return ids


class PromptTokens:
    """Tokenises a template's segments with one tokenizer. The document is cut to fit; query and target never are.

    Args:
        tokenizer: the LLM's tokenizer.
        template: text around documents, query and answer.
        max_document_tokens: the most tokens of its own that a document keeps.
        kept_texts: number of documents, and of suffixes, whose ids are kept. Each takes 8 bytes a token and some
            hundred bytes more.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        *,
        max_document_tokens: int,
        kept_texts: int = 100_000,
    ) -> None:
        if max_document_tokens < 1:
            raise NLTError(f"max_document_tokens is {max_document_tokens}; it must be at least 1")
        self.template = template
        self.max_document_tokens = max_document_tokens
        self.plain = PlainText(tokenizer)
        self._known: dict[int, int] = {}
        self._before = tuple(template_ids(tokenizer, template.document_prefix))
        self._after = tuple(template_ids(tokenizer, template.document_suffix))
        self._before_query = template_ids(tokenizer, template.query_prefix)
        self._before_answer = template_ids(tokenizer, template.answer_prefix)
        self.start = sequence_start(tokenizer)
        # The same texts come again: queries share candidates, and every epoch repeats them.
        self.document = lru_cache(maxsize=kept_texts)(self._document)
        self.suffix = lru_cache(maxsize=kept_texts)(self._suffix)

    @property
    def document_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after each document's own ids."""
        return self._before, self._after

    def _ids(self, text: str) -> list[int]:
        ids = self.plain(text) if text.strip() else []
        return [self._known.setdefault(i, i) for i in ids]  # equal ids share an object: 8 bytes a token, not 36

    def _document(self, text: str) -> tuple[tuple[int, ...], bool]:
        """A document's own ids, cut to `max_document_tokens`, and whether they were cut."""
        ids = self._ids(text)
        if not ids:
            raise NLTError(f"document {text[:40]!r} has no tokens; remove empty documents from the corpus")
        return tuple(ids[: self.max_document_tokens]), len(ids) > self.max_document_tokens

    def _suffix(self, query: str, answer: str | None, target: TargetKind) -> Suffix:
        """Ids of `query_prefix query [answer_prefix answer]` and which of them are the target."""
        texts = [(self._before_query, query, target != "answer")]
        if target != "query":
            if not answer:
                raise NLTError(
                    f"target {target!r} needs an answer, and query {query[:60]!r} has none; "
                    "give every query an answer or set target to 'query'"
                )
            texts.append((self._before_answer, answer, True))
        ids: list[int] = []
        marks: list[bool] = []
        for before, text, marked in texts:
            if not (own := self._ids(f" {text}")):
                raise NLTError(
                    f"query {query[:60]!r} has no target tokens: {text!r} is empty; remove empty queries and answers"
                )
            ids += [*before, *own]
            marks += [False] * len(before) + [marked] * len(own)
        return Suffix(tuple(ids), tuple(marks))


def sequence_start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The begin-of-sequence id, if the tokenizer puts one in front of every text by itself; else nothing."""
    ids = tokenizer("a").input_ids
    if tokenizer.bos_token_id is not None and ids and ids[0] == tokenizer.bos_token_id:
        return (tokenizer.bos_token_id,)
    return ()
