"""Score how likely an LLM on a server finds a target text, with a document before it and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.candidate_pairs import Pair, document_major
from nlt_trainer.lm.completion_server import CompletionServer, Prompt
from nlt_trainer.lm.frozen_lm import tokenizer_hash
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.lm.scorer import KEPT_TEXTS, Scored, Scorer, scored, scoring_bar
from nlt_trainer.locations import loading, resolve_model
from nlt_trainer.prompts import PromptTemplate

SHARES = 8
"""The prompts in flight are in so many requests at least, so that a server is never without work."""
UNKNOWN_LENGTH = 1_000_000
"""The context length where neither server nor tokenizer says one; transformers then has a larger number."""


class RemoteScorer(Scorer):
    """Log-likelihoods of targets under an LLM on a server, see `CompletionServer`.

    A server that reads token ids gets the tokens that `LikelihoodScorer` reads, and its scores differ by its
    arithmetic alone. One that reads text gets a whole prompt and makes tokens of that, so that a token may lie across
    the end of a segment, where `LikelihoodScorer` has two. Every answer is checked against the tokenizer.

    The pairs of one document are sent one after another, because servers keep the beginnings of prompts.

    Args:
        server: the server.
        tokenizer: name of the tokenizer of its model, as `resolve_model` takes it; `None` means that the server's
            name of the model is one.
        target: see `Scorer`.
        template: text around document, query and answer.
        max_document_tokens: a longer document is cut; query and target never are.
        requests: the most prompts that are in flight. A request may hold several, if an eighth of these is more.
        revision: of the server's model, for the key of the cache; no server says it.
        cache_folder: where a `ScoreCache` keeps what was computed; `None` keeps nothing.

    Raises:
        NLTError: the tokenizer cannot be found, or is not that of the server's model.
    """

    def __init__(
        self,
        server: CompletionServer,
        *,
        tokenizer: str | None,
        target: TargetKind,
        template: PromptTemplate | None = None,
        max_document_tokens: int = 192,
        requests: int = 64,
        revision: str | None = None,
        cache_folder: str | None = None,
    ) -> None:
        self.server, self.requests, self._revision = server, requests, revision
        self._tokenizer = _load_tokenizer(tokenizer or server.model, server)
        tokens = PromptTokens(
            self._tokenizer,
            template or PromptTemplate(),
            max_document_tokens=max_document_tokens,
            kept_texts=KEPT_TEXTS,
        )
        limits = (server.context_length, self._tokenizer.model_max_length, UNKNOWN_LENGTH)
        super().__init__(
            server.model,
            target=target,
            tokens=tokens,
            context_length=min(int(limit) for limit in limits if limit) - 1,  # one token is generated
        )
        server.find_form(self._tokenizer)
        self.cache = None if cache_folder is None else ScoreCache(cache_folder, self.description)

    @property
    def fingerprint(self) -> dict[str, str | None]:
        """The server's model, its revision, the tokenizer, and the form of the prompts."""
        return {
            "server_model": self.server.model,
            "server_root": self.server.root,
            "revision": self._revision,
            "tokenizer": tokenizer_hash(self._tokenizer),
            "prompt": "ids" if self.server.reads_ids else "text",
            "context_length": str(self.context_length),
        }

    def count_tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that the server reads to score these pairs when neither it nor the cache has any of them."""
        _, first, _ = self._distinct(pairs)
        return sum(len(self._prompt(pairs[i])[0].ids) for i in first)

    def score_pairs(self, pairs: Sequence[Pair], chosen: np.ndarray) -> Iterator[Scored]:
        """Send the chosen pairs, and yield as many as were in flight; a request that fails ends all, see `Scorer`."""
        order = iter(document_major(pairs, chosen))
        together = min(self.server.prompts, max(1, self.requests // SHARES))
        flying: dict[asyncio.Task[list[np.ndarray]], list[tuple[int, np.ndarray, bool, int]]] = {}

        async def some() -> tuple[list[tuple[int, np.ndarray, bool]], BaseException | None]:
            """Wait for as many answers as may be in flight, and for the first error among them."""
            landed: list[tuple[int, np.ndarray, bool]] = []
            while len(landed) < self.requests:
                while places := [*islice(order, min(together, self.requests - sum(map(len, flying.values()))))]:
                    made = [self._prompt(pairs[chosen[place]]) for place in places]
                    prompts = [prompt for prompt, _, _ in made]
                    task = asyncio.create_task(self.server.log_probabilities(prompts))
                    flying[task] = [
                        (int(place), target, cut, len(prompt.ids))
                        for place, (prompt, target, cut) in zip(places, made, strict=True)
                    ]
                if not flying:
                    break
                done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                errors = [error for task in done if (error := task.exception()) is not None]
                for task in done:
                    sent = flying.pop(task)
                    if task.exception() is not None:
                        continue
                    for (place, target, cut, length), values in zip(sent, task.result(), strict=True):
                        landed.append((place, values[target[1:]], cut))
                        self.lm_tokens += length
                if errors:
                    for task in flying:
                        task.cancel()
                    await asyncio.gather(*flying, return_exceptions=True)  # asyncio logs what nobody has looked at
                    return landed, errors[0]
            return landed, None

        with self.server.connected() as runner, scoring_bar(len(chosen)) as bar:
            failed: BaseException | None = None
            while failed is None:
                landed, failed = runner.run(some())
                if landed:
                    places, tokens, truncated = zip(*landed, strict=True)
                    bar.update(len(landed))
                    yield np.array(places), scored(tokens, truncated), list(tokens)
                elif failed is None:
                    return
            raise failed

    def _prompt(self, pair: Pair) -> tuple[Prompt, np.ndarray, bool]:
        """A pair's prompt, for each of its ids whether it belongs to the target, and whether the document was cut."""
        document, query, answer = pair
        suffix = self.tokens.suffix(query, answer, self.target)
        prefix, cut = self._prefix(document, suffix, query)
        if self.server.reads_ids:
            return Prompt((*prefix, *suffix.ids)), np.array([*[False] * len(prefix), *suffix.target]), cut
        before, after = self.tokens.document_frame
        return self._text_prompt(pair, limit=len(prefix) - len(self.tokens.start) - len(before) - len(after))

    def _text_prompt(self, pair: Pair, *, limit: int) -> tuple[Prompt, np.ndarray, bool]:
        """The same for a server that reads text, with at most `limit` tokens of the document.

        Raises:
            NLTError: a text spells a control token, which the server would read as one.
        """
        document, query, answer = pair
        for text in filter(None, pair):
            if spelt := self.tokens.plain.spelt(text, self._with_ends(text)[0]):
                raise NLTError(
                    f"LLM server {self.server.url} reads text, and would read {next(iter(spelt.values()))!r} in "
                    f"{text[:60]!r} as a control token; take it out of the text, or use a server that reads token ids"
                )
        template, cut = self.tokens.template, False
        parts: list[tuple[str, bool]] = []
        if document is not None:
            _, ends = self._with_ends(document)
            cut = len(ends) > limit
            text = document[: ends[limit - 1]] if cut else document
            parts = [(template.document_prefix, False), (text, False), (template.document_suffix, False)]
        parts += [(template.query_prefix, False), (f" {query}", self.target != "answer")]
        if self.target != "query":
            parts += [(template.answer_prefix, False), (f" {answer}", True)]
        marks = np.repeat([mark for _, mark in parts], [len(text) for text, _ in parts])
        whole = "".join(text for text, _ in parts)
        ids, ends = self._with_ends(whole)
        start = self.tokens.start
        # a token belongs to the part in which it ends
        return Prompt((*start, *ids), whole), np.array([*[False] * len(start), *marks[np.array(ends) - 1]]), cut

    def _with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text and the place behind the last character of each."""
        found = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return found.input_ids, [end for _, end in found.offset_mapping]


def _load_tokenizer(name: str, server: CompletionServer) -> PreTrainedTokenizerBase:
    try:
        with loading("tokenizer", name):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                resolve_model(name), trust_remote_code=False
            )
    except NLTError as error:
        raise NLTError(
            f"{error}; set llm_tokenizer to the tokenizer of {server.model!r}, the model of LLM server {server.url}"
        ) from error
    return tokenizer
