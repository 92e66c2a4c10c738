"""The stage `detect_heads`: find the attention heads of the LLM through which DREAM can teach."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.gains import load_gains
from nlt_trainer.assembly.losses import Parts, dream, make_collator
from nlt_trainer.assembly.parts import (
    load_candidates,
    load_llm,
    load_training_collection,
    load_untrained,
    processes,
    target_of,
)
from nlt_trainer.choices import TargetKind
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.needles import cut_needles
from nlt_trainer.data.training import relevance
from nlt_trainer.injection.detection import (
    detect_heads_by_gradient,
    detect_query_focused_heads,
    relevant_by_gain,
    tells_apart,
)
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.objectives.gradient_audit import audit_gradient
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments

LEAST_AUDITED = 8
"""The least number of queries that DREAM's gradient is audited on; fewer say nothing."""


@dataclass(frozen=True)
class HeadTask:
    """The queries and documents on which heads are tested.

    Args:
        queries: B texts.
        answers: B texts, or `None` where a query has none.
        documents: B lists of K texts.
        relevant: `(B, K)` bool.
        gold: the source of `relevant`, in words.
        target: what the LLM has to predict.
    """

    queries: list[str]
    answers: list[str | None]
    documents: list[list[str]]
    relevant: np.ndarray
    gold: str
    target: TargetKind


def detect_heads(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Write the recipe's `heads` file."""
    if not processes(args).is_main_process:
        return
    start, collection = time.monotonic(), load_training_collection(data)
    if model.head_scores is not None:
        save_heads(HeadSet.load(model.head_scores), model, seed=args.seed)
        return
    task, lm = head_task(collection, model, data, seed=args.seed), load_llm(model)
    scored = detect(lm, task, model, data, seed=args.seed)
    how = {"method": data.head_method, "gold": task.gold, "collection": collection.name}
    seconds = round(time.monotonic() - start, 1)
    settings = {**how, **scored.settings, "seconds": seconds}
    save_heads(dataclasses.replace(scored, settings=settings), model, seed=args.seed)
    if "dream" in args.objectives and data.head_method != "needle":
        parts = Parts(load_untrained(model), model, data, args, load_candidates(data, collection), lm)
        audit_dream(parts, task)


def save_heads(scored: HeadSet, model: ModelArguments, *, seed: int) -> None:
    """Write the heads that the recipe selects by their scores."""
    found = scored.select(model.num_heads, model.head_selection, seed=seed)
    found.save(model.heads)
    first = ", ".join(f"{layer}.{head} ({found.scores[layer][head]:.2f})" for layer, head in found.heads[:4])
    say(f"{model.heads}: {len(found.heads)} heads ({model.head_selection}), by {found.score_name}: {first}")


def audit_dream(parts: Parts, task: HeadTask) -> None:
    """Print how well DREAM's gradient with the recipe's heads ranks the candidates on which heads were tested."""
    args = parts.args
    rows = [
        {"query": query, "answer": answer, "documents": documents, "gain": known.astype(float).tolist()}
        for query, answer, documents, known in zip(
            task.queries, task.answers, task.documents, task.relevant, strict=True
        )
        if known.any()
    ]
    if len(rows) < LEAST_AUDITED:
        return
    loss = dream(parts, (args.temperatures or {}).get("dream", args.temperature))
    found = audit_gradient(loss, make_collator(parts, loss), rows)
    say(f"DREAM as a teacher, against the {task.gold} of {len(rows)} queries before training:")
    for name, audit in found.items():
        scores = "equal scores" if name == "equal" else "the start's scores"
        say(
            f"  at {scores} its gradient ranks it with a mean reciprocal rank of {audit.reciprocal_rank:.3f}, "
            f"signal to noise {audit.signal_to_noise:.2f}"
        )


def detect(lm: FrozenLM, task: HeadTask, model: ModelArguments, data: DataArguments, *, seed: int) -> HeadSet:
    """Score all heads by the recipe's method and select the best."""
    find = partial(
        detect_heads_by_gradient if data.head_method == "gradient" else detect_query_focused_heads,
        lm,
        task.queries,
        documents=task.documents,
        relevant=task.relevant,
        template=data.template,
        max_document_tokens=data.max_document_tokens,
        layout=data.head_layout or data.document_layout,
        num_heads=model.num_heads,
        seed=seed,
    )
    if data.head_method == "gradient":
        return find(target=task.target, answers=task.answers)
    return find()


def head_task(collection: Collection, model: ModelArguments, data: DataArguments, *, seed: int) -> HeadTask:
    """Draw at most `head_queries` queries of the recipe's method whose documents are not all equally relevant."""
    needle = data.head_method == "needle"
    task = needle_task(collection, data, seed=seed) if needle else candidate_task(collection, model, data)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(tells_apart(task.relevant)))[: data.head_queries]
    queries, answers = [task.queries[i] for i in drawn], [task.answers[i] for i in drawn]
    documents = [task.documents[i] for i in drawn]
    return HeadTask(queries, answers, documents, task.relevant[drawn], task.gold, task.target)


def candidate_task(collection: Collection, model: ModelArguments, data: DataArguments) -> HeadTask:
    """The training queries with their candidates; gains or judgements say which candidates are relevant."""
    candidates = load_candidates(data, collection)
    if data.head_method == "qrels":
        split = str(data.head_qrels)
        relevant, gold = relevance(candidates, collection.split_qrels(split)), f"qrels/{split}.tsv"
    else:
        gain = load_gains(model, data, collection=collection, candidates=candidates, as_labels=True)
        relevant, gold = relevant_by_gain(gain), "candidate of the highest gain"
    documents = [[collection.corpus[d].content for d in c.document_ids] for c in candidates]
    queries, answers = [c.query for c in candidates], [c.answer for c in candidates]
    return HeadTask(queries, answers, documents, relevant, gold, target_of(data, candidates))


def needle_task(collection: Collection, data: DataArguments, *, seed: int) -> HeadTask:
    """Sentences as queries, each cut out of the document of the corpus that counts as relevant."""
    needles = cut_needles(
        collection,
        data.head_queries,
        num_candidates=data.num_candidates,
        max_words=data.max_document_tokens,
        seed=seed,
    )
    relevant = np.zeros((len(needles), data.num_candidates), bool)
    relevant[:, 0] = True
    gold = "the document that the query was cut out of"
    documents = [list(n.documents) for n in needles]
    return HeadTask([n.query for n in needles], [None] * len(needles), documents, relevant, gold, "query")
