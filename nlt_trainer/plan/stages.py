"""Estimate the LLM tokens, FLOPs, seconds and memory that each stage of a recipe will cost."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.trainer import PROMPT_OBJECTIVES
from nlt_trainer.assembly import parts as shared
from nlt_trainer.assembly.evaluation import reported
from nlt_trainer.assembly.losses import Parts
from nlt_trainer.assembly.scoring import pairs_of
from nlt_trainer.data.beir import load_corpus
from nlt_trainer.data.bm25 import BM25Index
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates
from nlt_trainer.data.collator import PromptBuilder
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.lm.cpu import packed_weights
from nlt_trainer.plan.models import Model, Work, find_model, time_step, timed
from nlt_trainer.training_arguments import NLTTrainingArguments

COUNTED_QUERIES, MINED_DOCUMENTS = 2_000, 5_000
"""The most queries that are counted, and the most documents that are mined. If there are more, a sample is used."""

PROBE_FLOPS = 2e13 if torch.cuda.is_available() else 1e11
"""The FLOPs of the scoring and of the training step that are timed. Each of them takes some seconds."""


class Planner:
    """Plans the stages of a recipe from its three blocks. What several stages need is loaded once."""

    def __init__(self, model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
        imports, self.notes = time.process_time(), list[str]()
        # A merged adapter costs nothing, and the LLM costs the same in a process of its own.
        self.model, self.data, self.args = dataclasses.replace(model, adapter=None, llm_process=False), data, args
        self.collection, reading = timed(lambda: shared.load_training_collection(data))
        self.begin = imports + reading  # seconds before the work of any stage
        self.base = 0.0 if torch.cuda.is_available() else float(shared.resident_peak())  # memory without a model
        self.queries, corpus = shared.chosen_queries(self.collection, data, seed=args.seed), self.collection.corpus
        share = min(1.0, MINED_DOCUMENTS / len(corpus), COUNTED_QUERIES / len(self.queries))
        minable = [document.id for document in corpus.values() if document.content]
        own = any(self.collection.own_document(query.id) for query in self.queries)
        documents = self.drawn(minable, max(data.num_candidates + own, round(share * len(minable))))
        self.part = dataclasses.replace(self.collection, corpus={d: corpus[d] for d in documents})
        self.asked = self.drawn(self.queries, max(32, round(share * len(self.queries))))
        self.candidates, self.factor = self._candidates()
        self.detects = "dream" in args.objectives and model.head_scores is None
        self.scores = args.reads_gains(data) or (self.detects and data.head_method in ("gain", "gradient"))
        reads = self.scores or self.detects or args.reads_llm
        self.llm = find_model("llm", self.model, shared.load_llm, notes=self.notes) if reads else None
        lm = self.llm.loaded if self.llm else None
        backbone = lm if model.shared_backbone else None
        self.encoder = find_model("encoder", self.model, lambda m: shared.load_start(m, backbone), notes=self.notes)
        self.parts = Parts(self.encoder and self.encoder.loaded, self.model, data, args, self.candidates, lm)  # type: ignore[arg-type]  # a missing encoder is never run
        self.scoring_rate = self.training_rate = math.nan  # seconds per FLOP

    def _candidates(self) -> tuple[list[QueryCandidates], float]:
        """Return the candidates of the counted queries, and how many queries of the recipe each stands for."""
        data, file, part = self.data, self.data.candidates, self.part.corpus
        if there := Path(file).is_file():
            found = shared.load_candidates(data, self.collection)
        else:
            found = mine_candidates(self.part, self.asked, num_candidates=data.num_candidates, seed=self.args.seed)
        some, count = self.drawn(found, COUNTED_QUERIES), len(found if there else self.queries)
        exact = there or (len(part) == len(self.collection.corpus) and data.miner == "bm25")
        sample = f"estimated from {len(some):,} of {count:,} queries with"
        source = file if there else f"what BM25 finds in {len(part):,} documents, as {file} is not there yet"
        self.notes.append(f"LLM tokens are {'counted on' if exact and len(some) == count else sample} {source}.")
        return some, count / len(some)

    def drawn(self, items: Sequence[Any], count: int) -> list[Any]:
        """Draw at most `count` of the items at random, and keep their order."""
        chosen = random.Random(self.args.seed).sample(range(len(items)), min(count, len(items)))
        return [items[i] for i in sorted(chosen)]

    def row(self, c: QueryCandidates) -> dict[str, Any]:
        """Return a query with the texts of its documents, in the form that the builders of prompts take."""
        documents = [self.collection.corpus[d].content for d in c.document_ids]
        return {"query": c.query, "documents": documents, "answer": c.answer}

    def stages(self) -> list[dict[str, Any]]:
        """Return one row of the plan for each stage that the recipe needs."""
        self.notes.append("Time and memory are estimates without checkpoints, dev_split, metrics, absent collections.")
        scoring = [self.score()] if self.scores or self.detects else []  # heads are detected at the speed of scoring
        stages = [self.mine(), *(scoring if self.scores else []), *([self.detect_heads()] if self.detects else [])]
        return [*stages, self.train(), *([self.evaluate()] if reported(self.data) else [])]

    def stage(
        self, name: str, work: Work, *models: Model, rate: float = 0.0, other: float = 0.0, memory: float = 0.0
    ) -> dict[str, Any]:
        """Return the row of the plan for a stage that loads these models. NaN stands for a value that is not known.

        `rate` is seconds per FLOP. `other` are seconds that no accelerator changes, such as imports, loading and BM25.
        """
        other += self.begin + sum(model.seconds for model in models)
        return {
            "stage": name,
            "lm_tokens": work.tokens,
            "flops": work.flops,
            "seconds": other + (rate * work.flops if work.flops else 0.0),
            "other_seconds": other,
            "memory": self.base + memory + sum(model.weight_bytes for model in models) + 0 * work.flops,
        }

    def mine(self) -> dict[str, Any]:
        """Plan `mine`, which searches the corpus by BM25."""
        if self.data.miner != "bm25":
            self.notes.append("mine is without the encoder, which embeds the corpus.")
        index, building = timed(lambda: BM25Index(self.part.corpus))
        _, searching = timed(lambda: [index.scores(query.text) for query in self.asked])
        seconds = building + searching * len(self.queries) / len(self.asked)
        return self.stage("mine", Work(), other=seconds * len(self.collection.corpus) / len(self.part.corpus))

    def score(self) -> dict[str, Any]:
        """Plan `score`: the LLM reads each document once for all its queries, and each query without a document."""
        llm, data, candidates = self.llm, self.data, self.candidates
        if llm is None:
            return self.stage("score", Work(math.nan, math.nan))
        target, tokens = shared.target_of(data, candidates), shared.prompt_tokens(llm.tokenizer, data)
        texts, groups, works = [self.row(c)["documents"] for c in candidates], dict[Any, list[Any]](), {}
        for c, documents in zip(candidates, texts, strict=True):
            for text in (None, *documents):
                groups.setdefault(text, []).append((text, c.query, c.answer))
        for text, pairs in groups.items():
            own = 0 if text is None else len(tokens.document(text)[0]) + sum(map(len, tokens.document_frame))
            prefix = len(tokens.start) + own
            ends = [tokens.suffix(query, answer, target) for _, query, answer in dict.fromkeys(pairs)]
            each = (llm.read(len(end.read), after=prefix, targets=end.target_tokens) for end in ends)
            works[text] = sum(each, llm.read(prefix))
        work = sum(works.values(), Work())
        if llm.loaded is not None:
            scorer = shared.make_scorer(llm.loaded, dataclasses.replace(data, score_cache=None), target=target)  # type: ignore[arg-type]
            read = scorer.count_tokens(pairs_of(candidates, texts)) + scorer.count_tokens(pairs_of(candidates))
            some = sorted(works, key=lambda text: works[text].flops)[len(works) // 2 :]  # of like cost, as in a batch
            some = some[: max(1, int(PROBE_FLOPS / works[some[0]].flops))]
            with packed_weights(llm.transformer):  # as the stage itself does
                scorer.log_likelihood(groups[some[0]])  # the first call is slower
                _, took = timed(lambda: scorer.log_likelihood([pair for text in some for pair in groups[text]]))
            self.scoring_rate = took / sum(works[text].flops for text in some)
            work = Work(read, work.flops)
        packed = 4 * llm.multiplied if self.base and llm.transformer.dtype == torch.float32 else 0  # copies for a CPU
        return self.stage("score", work * self.factor, llm, rate=self.scoring_rate, memory=packed)

    def detect_heads(self) -> dict[str, Any]:
        """Plan `detect_heads`, at the speed of scoring.

        Each prompt is read with its query and with the null query, or with its target, with a gradient.
        """
        llm, data, work = self.llm, self.data, Work()
        if llm is None:
            return self.stage("detect_heads", Work(math.nan, math.nan))
        tokens, asked = shared.prompt_tokens(llm.tokenizer, data), self.candidates[: data.head_queries]
        gradients = int(data.head_method == "gradient")
        target = shared.target_of(data, self.candidates) if gradients else "query"
        build = PromptBuilder(tokens, target, llm.frame.context_length, data.head_layout or data.document_layout)
        for c in asked:
            work += prompt_work(llm, build([self.row(c)]), times=2 - gradients, gradients=gradients)[1]
        work *= min(data.head_queries, len(self.queries)) / len(asked)
        self.notes.append("detect_heads: LLM tokens are estimated, because its queries are drawn by their gains.")
        return self.stage("detect_heads", work, llm, rate=self.scoring_rate)

    def encoder_work(self, texts: Sequence[str], *, length: int | None, gradients: int = 0) -> Work:
        """Return the work of encoding texts, without the encoder's prompts. `gradients` is that of `Model.read`."""
        if self.encoder is None or self.encoder.transformer is None:
            return Work()
        ids = self.encoder.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        return sum((self.encoder.read(len(own), gradients=gradients) for own in ids), Work())

    def row_work(self, c: QueryCandidates, prompts: Any, chunks: Any) -> tuple[list[Any], Work, Work]:
        """Return the document texts that the LLM reads for a training row, its work, and the work of the encoder."""
        row, texts, work, llm, model = self.row(c), list[Any](), Work(), cast(Model, self.llm), self.model
        all_texts, gradients = [c.query, *row["documents"]], 1 if model.lora else 2
        lengths = [length for length in (model.train_max_length, model.max_seq_length) if length is not None]
        own = self.encoder_work(all_texts, length=min(lengths, default=None), gradients=gradients)
        for name in PROMPT_OBJECTIVES & set(self.args.objectives):
            times = len(c.document_ids) if name == "loop" else 1  # LOOP leaves out one document at a time
            read, cost = prompt_work(llm, prompts([row]), times=times, gradients=int(name == "dream"))
            texts, work = texts + read, work + cost
        if chunks is not None:
            groups, gradients = chunks([row]), int(model.llm_lora is not None)
            work += llm.read(0, targets=int(groups.chunk_target.sum()), gradients=1)
            for n in groups.chunk_mask[0].sum(-1).tolist():  # read for keys and values, then to predict
                work += llm.read(n, gradients=gradients) + llm.read(n, gradients=1)
        return texts, work, own

    def train(self) -> dict[str, Any]:
        """Plan `train`: the steps of the encoder, and what the LLM reads for them."""
        args, encoder, llm = self.args, self.encoder, self.llm if self.args.reads_llm else None
        if args.reads_llm and llm is None:
            return self.stage("train", Work(math.nan, math.nan))
        builders = self.parts.builders(llm.frame if llm else None)
        rows = [self.row_work(c, *builders) for c in self.candidates]
        batch = args.train_batch_size * args.gradient_accumulation_steps
        epoch = math.ceil(len(rows) * self.factor / batch)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
        times, memory = steps / epoch * self.factor, 0.0
        work, own = sum((row[1] for row in rows), Work()) * times, sum((row[2] for row in rows), Work()) * times
        if args.reads_labels(self.data):
            self.notes.append("train: all queries are counted, also those without a relevant candidate.")
        if llm is not None:
            suffixes = max(read.tokens - sum(map(len, texts)) for texts, read, _ in rows)
            memory = llm.training_bytes(suffixes * args.lm_micro_batch_size) + args.document_cache_gib * 2**30
            memory -= llm.weight_bytes if self.model.shared_backbone else 0
            work += self.saved(llm, [text for row in rows for text in row[0]], times)
        if encoder is None:
            return self.stage("train", Work(work.tokens, math.nan))
        other = self.time_training([(read + alone).flops for _, read, alone in rows]) * steps * batch
        memory += encoder.training_bytes(own.tokens / times / len(rows) * args.train_batch_size)
        work, models = Work(work.tokens, work.flops + own.flops), [encoder, *([llm] if llm else [])]
        return self.stage("train", work, *models, rate=self.training_rate, other=other, memory=memory)

    def saved(self, llm: Model, texts: list[tuple[int, ...]], times: float) -> Work:
        """Return, as negative work, the reading that is saved if documents do not see each other and are kept."""
        independent = self.data.document_layout == "independent"
        if independent and self.args.document_cache_gib and PROMPT_OBJECTIVES & set(self.args.objectives) == {"dream"}:
            self.notes.append("train: LLM tokens if document_cache_gib holds all documents, memory if it is full.")
            return llm.read_all(set(texts)) * self.factor + llm.read_all(texts) * -times
        if independent:
            self.notes.append("train: LLM tokens are at most these: a batch reads a document that it shares once.")
        return Work()

    def time_training(self, flops: list[float]) -> float:
        """Time a step on median rows and set the seconds per FLOP. Without FLOPs, return the seconds per row."""
        if not self.parts.encoder or (self.args.reads_llm and not self.parts.backbone):
            return 0.0
        middle, batch = sorted(flops)[len(flops) // 2], min(self.args.train_batch_size, len(flops))
        size = min(batch, max(1, int(PROBE_FLOPS / middle))) if middle else batch
        some = sorted(range(len(flops)), key=flops.__getitem__)[(len(flops) - size) // 2 :][:size]
        rows, steps = [self.candidates[i] for i in some], 1 if middle > PROBE_FLOPS else 3
        took = time_step(self.parts, rows, self.collection, steps=steps)
        self.training_rate = took / sum(flops[i] for i in some) if middle else 0.0
        return 0.0 if middle else took / size

    def evaluate(self) -> dict[str, Any]:
        """Plan `evaluate`: a sample stands for all documents, which are encoded twice, at the speed of training."""
        if self.encoder is None:
            return self.stage("evaluate", Work(0.0, math.nan))
        documents = sum(len(load_corpus(folder)) for folder, _ in reported(self.data) if Path(folder).is_dir())
        some = self.drawn([document.content for document in self.collection.corpus.values()], 512)
        work = Work(0.0, 2 * self.encoder_work(some, length=self.model.max_seq_length).flops * documents / len(some))
        return self.stage("evaluate", work, self.encoder, self.encoder, rate=self.training_rate)


def prompt_work(llm: Model, prompts: DocumentPrompts, *, times: int = 1, gradients: int = 0) -> tuple[Any, Work]:
    """Return the document texts of one prompt, and the work of reading these once and its suffixes `times` times.

    Documents that see each other are one text. Otherwise each document is a text of its own behind the prompt's start.
    """
    ids, segments = prompts.prompt_ids[0], prompts.prompt_segments[0]
    start = tuple(ids[segments == 0].tolist())
    texts = {(*start, *ids[segments == k].tolist()) for k in range(1, int(segments.max()) + 1)} | ({start} - {()})
    targets = int(prompts.suffix_target.sum())
    work = llm.read(int(prompts.suffix_mask.sum()), after=len(ids), targets=targets, gradients=gradients)
    return list(texts), llm.read_all(texts) + work * times
