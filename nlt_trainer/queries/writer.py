"""Let a frozen LLM write queries about passages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache, GenerationConfig, LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from nlt_trainer.data.beir import Document
from nlt_trainer.data.questions import hash_of
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PlainText, template_ids
from nlt_trainer.queries.prompts import prompt_end, prompt_start
from nlt_trainer.queries.written_texts import WrittenTexts

TEMPERATURE, TOP_P = 0.5, 0.9
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Job:
    """A query to write.

    Args:
        kind: one of `KINDS`.
        passage: what it is about.
    """

    kind: str
    passage: Document


class SeededChoice(LogitsProcessor):
    """Turns greedy decoding into sampling in which each row has a random state of its own.

    The token with the highest `logit - log(e)`, with `e` drawn from an exponential distribution for each token, is a
    sample of the softmax (Gumbel-max). So a row's text depends neither on the other rows of its batch nor on their
    number.

    Args:
        seeds: one for each row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add the noise to `scores`, `(R, vocabulary)`."""
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores - noise.log().to(scores)


class QueryWriter:
    """Writes queries with a frozen LLM, in batches of one kind, and keeps what it has written.

    The examples that each prompt of a kind begins with, which are longer than most passages, are read once. A text
    depends on the LLM, the prompt, the passage and the seed. In bfloat16 the rounding of a batch of another shape can
    change it in rare cases.

    Args:
        lm: the frozen LLM.
        max_document_tokens: a longer passage is cut.
        batch_size: texts that are written at once.
        seed: of the sampling.
        file: where texts are kept; `None` keeps them in memory alone.
    """

    def __init__(
        self,
        lm: FrozenLM,
        *,
        max_document_tokens: int = 192,
        batch_size: int = 16,
        seed: int = 0,
        file: Path | None = None,
    ) -> None:
        self.lm, self.max_document_tokens, self.batch_size, self.seed = lm, max_document_tokens, batch_size, seed
        self.written = WrittenTexts(file)
        self._plain = PlainText(lm.tokenizer)
        ends = lm.model.generation_config.eos_token_id or lm.tokenizer.eos_token_id
        self._ends: list[int] = [ends] if isinstance(ends, int) else list(ends or [])
        self._frame = cache(self._tokenised_frame)
        self._read_start = cache(self._keys_and_values)
        # generation hands the last column of a batch to the LLM's head, and torch would multiply such a slice with a
        # copy of the head's weights for each row
        lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))

    def write(self, jobs: Sequence[Job]) -> list[str]:
        """Write a text for each job; those that are there already are not written again.

        Returns:
            Texts in the order of the jobs, each with a line feed where the LLM ended the line.

        Raises:
            NLTError: a prompt does not fit the LLM's context.
        """
        keys = [self._key(job) for job in jobs]
        prompts = {k: self._prompt(job) for k, job in zip(keys, jobs, strict=True) if k not in self.written.texts}
        kinds = {key: job.kind for key, job in zip(keys, jobs, strict=True)}
        missing = sorted(prompts, key=lambda key: (kinds[key], -len(prompts[key])))
        with tqdm(total=len(missing), unit="query", desc="writing", disable=len(missing) < self.batch_size) as bar:
            for kind, same in groupby(missing, key=kinds.__getitem__):
                while batch := list(islice(same, self.batch_size)):
                    seeds = [int(key, 16) % 2**63 for key in batch]
                    texts = self._generate(kind, [prompts[key] for key in batch], seeds=seeds)
                    self.written.add(dict(zip(batch, texts, strict=True)))
                    bar.update(len(batch))
        return [self.written.texts[key] for key in keys]

    def _key(self, job: Job) -> str:
        """Hash of all that a text depends on."""
        settings = (self.max_document_tokens, self.seed, TEMPERATURE, TOP_P, MAX_NEW_TOKENS)
        parts = (self.lm.id, settings, prompt_start(job.kind), prompt_end(job.kind), job.passage.content)
        return f"{hash_of(repr(parts)):016x}"

    def _tokenised_frame(self, kind: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt before and after the passage."""
        before = template_ids(self.lm.tokenizer, prompt_start(kind))
        first = self.lm.tokenizer("a").input_ids[:1]  # the begin-of-sequence token, if the tokenizer adds one
        start = first if first == [self.lm.tokenizer.bos_token_id] else []
        return [*start, *before], template_ids(self.lm.tokenizer, prompt_end(kind))

    @torch.inference_mode()
    def _keys_and_values(self, kind: str) -> Cache:
        """What the LLM has in its cache after it has read the start of a kind's prompt."""
        before = torch.tensor([self._frame(kind)[0]], device=self.lm.device)
        cached: Cache = self.lm.model(input_ids=before, use_cache=True, logits_to_keep=1).past_key_values
        return cached

    def _prompt(self, job: Job) -> list[int]:
        """Token ids of a job's prompt after its start. Special tokens that a passage spells out are plain text."""
        before, after = self._frame(job.kind)
        ids = [*self._plain(f" {job.passage.content}")[: self.max_document_tokens], *after]
        if len(before) + len(ids) + MAX_NEW_TOKENS > self.lm.context_length:
            raise NLTError(
                f"a prompt of {len(before) + len(ids)} tokens and {MAX_NEW_TOKENS} new ones do not fit the "
                f"{self.lm.context_length} tokens of LLM {self.lm.name!r}; lower max_document_tokens or choose an LLM "
                "with a longer context"
            )
        return ids

    @torch.inference_mode()
    def _generate(self, kind: str, prompts: list[list[int]], *, seeds: list[int]) -> list[str]:
        """Write one line after each prompt; a line feed ends the line, or the LLM's end of text.

        Rows are the start of the prompt, padding, and the rest of the prompt.
        """
        tokenizer = self.lm.tokenizer
        before, start = self._frame(kind)[0], copy.deepcopy(self._read_start(kind))
        start.batch_repeat_interleave(len(prompts))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self._ends), 0)
        padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        rows = [[*before, *[pad] * number, *prompt] for number, prompt in zip(padding, prompts, strict=True)]
        ids = torch.tensor(rows, device=self.lm.device)  # (R, S)
        mask = torch.ones_like(ids)
        for row, number in enumerate(padding):
            mask[row, len(before) : len(before) + number] = 0
        output = self.lm.model.generate(  # type: ignore[operator]  # a method of a mixin that has no types
            input_ids=ids,
            attention_mask=mask,
            past_key_values=start,
            generation_config=GenerationConfig(
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=self._ends or None,
                stop_strings=["\n"],
            ),
            logits_processor=[TemperatureLogitsWarper(TEMPERATURE), TopPLogitsWarper(TOP_P), SeededChoice(seeds)],
            tokenizer=tokenizer,
        )
        return [self._line(row) for row in output[:, ids.shape[1] :].tolist()]

    def _line(self, written: list[int]) -> str:
        """The first line of the written tokens, with its line feed where they end it."""
        end = next((i for i, token in enumerate(written) if token in self._ends), None)
        text = str(self.lm.tokenizer.decode(written[:end], skip_special_tokens=True))
        line, ended, _ = text.partition("\n")
        return line + "\n" if ended or end is not None else line
