"""Refresh while training: the encoder, as it is after a step, mines new candidates, and training goes on with them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.arguments.beside import audit_file, embeddings_folder
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.assembly.gains import make_dataset
from nlt_trainer.assembly.losses import Parts
from nlt_trainer.assembly.mining import mined, write_mined
from nlt_trainer.assembly.parts import load_scorer, make_scorer, ray_workers, target_of
from nlt_trainer.assembly.scoring import score_candidates
from nlt_trainer.data.beir import Collection, Qrels, Query
from nlt_trainer.data.candidates import QueryCandidates, read_candidates
from nlt_trainer.data.current_rows import CurrentRows
from nlt_trainer.data.training import relevance
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write_bytes
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.scorer import Scorer
from nlt_trainer.locations import is_server
from nlt_trainer.run.folder import Run
from nlt_trainer.terminal import say


class Refresh(TrainerCallback):
    """Replaces the candidates of training by new ones of the recipe's miner, after the steps that `refresh` names.

    The encoder embeds the corpus, the miner chooses the candidates of the same queries, and the LLM scores the pairs
    that its cache lacks, if an objective reads gains. All of this is written into the folder of the run, and training
    reads it from there. A run that resumes reads the files of the last refresh before its checkpoint. A refresh after
    the checkpoint is made again. The trajectory is therefore that of a run which was never stopped.

    The encoder's mode and all random states stay as they were. Several processes share the embedding and the scoring.

    Args:
        parts: the recipe, its encoder, and the candidates of the start.
        collection: the corpus.
        rows: the rows that training reads, at first those of the start.
        checkpoint: the checkpoint that the run resumes from.
    """

    def __init__(self, parts: Parts, collection: Collection, rows: CurrentRows, *, checkpoint: str | None) -> None:
        self.parts, self.collection, self.rows = parts, collection, rows
        self.candidates = parts.candidates
        self.run = Run(str(parts.args.output_dir))
        self.source = self.run if checkpoint is None else Run(Path(checkpoint).parent)
        self.workers = ray_workers(parts.args)  # what it refuses is found before training begins
        self.steps: list[int] = []
        self.lm_tokens = 0
        """Tokens that the LLM reads for pairs that the candidates before lacked, whether or not the cache has them."""

    @cached_property
    def scorer(self) -> Scorer:
        """The recipe's scorer. Where an adapter of the LLM is trained, a second LLM without it scores."""
        model, data, target = self.parts.model, self.parts.data, target_of(self.parts.data, self.parts.candidates)
        if is_server(model.llm) or model.llm_lora is not None or self.workers is not None:
            return load_scorer(model, data, target=target, workers=self.workers)
        return make_scorer(self.parts.lm, data, target=target)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read what the last refresh before the checkpoint has written.

        Raises:
            NLTError: `refresh` names no step before the last one, or a file of that refresh is missing.
        """
        ranges = self.parts.args.refresh_ranges
        last = max(state.max_steps, state.global_step)  # a run without a step left has a maximum of 0
        self.steps = [step for step in range(1, last) if any(step in steps for steps in ranges)]
        if not self.steps and state.max_steps > state.global_step:  # else the run has stopped early, before a refresh
            raise NLTError(
                f"refresh {self.parts.args.refresh!r} names no step before the last one, {last}; name an "
                "earlier one, or leave refresh out"
            )
        if done := [step for step in self.steps if step <= state.global_step]:
            if state.is_world_process_zero:
                self.fetch(done[-1])
            PartialState().wait_for_everyone()
            self.use(self.data_of(done[-1]))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refresh the candidates if the schedule says so, before a checkpoint of this step is written."""
        if state.global_step not in self.steps:
            return
        begin, data = time.monotonic(), self.data_of(state.global_step)
        with undisturbed(self.parts.encoder):
            self.mine(data)
            candidates = self.read(data)
            new = new_pairs(candidates, self.candidates, self.collection)
            if self.parts.args.reads_gains(data):
                self.score(candidates, new, data)
            self.use(data)
        if state.is_world_process_zero:
            number, seconds = len(candidates) * data.num_candidates, time.monotonic() - begin
            say(
                f"step {state.global_step} of {state.max_steps}: {len(new)} of {number} candidates are new "
                f"({data.miner}), after {seconds:.0f} s"
            )

    def data_of(self, step: int) -> DataArguments:
        """The recipe's data with the files of a refresh in place of those of the start."""
        candidates, gains = self.run.refreshed_candidates(step), self.run.refreshed_gains(step)
        return replace(self.parts.data, candidates=str(candidates), gains=str(gains))

    def fetch(self, step: int) -> None:
        """Copy the files of a refresh, if the checkpoint is another run's, so that this run can resume by itself.

        Raises:
            NLTError: a file is missing.
        """
        names: list[Callable[[Run, int], Path]] = [Run.refreshed_candidates]
        if self.parts.args.reads_gains(self.parts.data):
            names += [Run.refreshed_gains]
            if audit_file(self.source.refreshed_gains(step)).is_file():
                names += [lambda run, step: audit_file(run.refreshed_gains(step))]
        for name in names:
            there, here = name(self.source, step), name(self.run, step)
            if not there.is_file():
                raise NLTError(
                    f"{there} is missing, which the refresh after step {step} wrote and later steps need; put it "
                    "back, or choose another output_dir"
                )
            if there != here:
                with atomic_write_bytes(here) as handle:
                    handle.write(there.read_bytes())

    def mine(self, data: DataArguments) -> None:
        """Write the new candidates, and read them in all processes."""
        encoder, state = self.parts.encoder, PartialState()
        queries = [Query(c.query_id, c.query, c.answer) for c in self.candidates]
        args, folder = self.parts.args, embeddings_folder(data.candidates)
        found = mined(encoder, data, args, self.collection, queries, embeddings=folder, state=state)
        if found is not None:
            if self.parts.args.reads_labels(data):
                found = same_judged(found, self.candidates, self.collection.split_qrels(str(data.train_split)))
            write_mined(data, found, self.collection)
        state.wait_for_everyone()

    def read(self, data: DataArguments) -> list[QueryCandidates]:
        return read_candidates(data.candidates, self.collection, num_candidates=data.num_candidates)

    def score(self, candidates: list[QueryCandidates], new: Sequence[Pair], data: DataArguments) -> None:
        """Write the gains of candidates, and count the tokens of those pairs that are new."""
        state = PartialState()
        tokens = self.scorer.count_tokens(new) if state.is_main_process else 0
        self.lm_tokens += tokens
        model, collection = self.parts.model, self.collection
        score_candidates(self.scorer, candidates, model=model, data=data, collection=collection, tokens=tokens)
        state.wait_for_everyone()

    def use(self, data: DataArguments) -> None:
        """Let training read the candidates and gains of a refresh from the next step on."""
        self.candidates = self.read(data)
        model, args = self.parts.model, self.parts.args
        self.rows.rows = make_dataset(model, data, args, collection=self.collection, candidates=self.candidates)


def new_pairs(
    candidates: Sequence[QueryCandidates], before: Sequence[QueryCandidates], collection: Collection
) -> list[Pair]:
    """The pairs of a query and a candidate that the query did not have before; both lists have the same queries."""
    return [
        (collection.corpus[document_id].content, now.query, now.answer)
        for now, then in zip(candidates, before, strict=True)
        for document_id in now.document_ids
        if document_id not in then.document_ids
    ]


def same_judged(
    candidates: Sequence[QueryCandidates], before: Sequence[QueryCandidates], qrels: Qrels
) -> list[QueryCandidates]:
    """New candidates, but the former ones of a query that would lose, or get for the first time, a relevant candidate.

    Training with labels leaves out queries without a relevant candidate, and the rows must stay those of the start.
    """
    judged = zip(relevance(candidates, qrels), relevance(before, qrels), strict=True)
    same = [now.any() == then.any() for now, then in judged]
    return [new if kept else old for kept, new, old in zip(same, candidates, before, strict=True)]


@contextmanager
def undisturbed(encoder: SentenceTransformer) -> Iterator[None]:
    """Leave the mode of each of the encoder's modules, and all random states, as they were before the block."""
    modes = [(module, module.training) for module in encoder.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    kind = encoder.device.type
    with torch.random.fork_rng([] if kind == "cpu" else [encoder.device], device_type=kind):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
    for module, training in modes:
        module.training = training
