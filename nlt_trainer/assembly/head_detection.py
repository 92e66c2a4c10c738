"""The stage `detect_heads`: find the LLM's attention heads that turn to the right document because of the query."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.parts import load_candidates, load_llm, load_training_collection, processes
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.gains import read_gains
from nlt_trainer.data.needles import cut_needles
from nlt_trainer.data.training import relevance
from nlt_trainer.injection.heads import HeadSet, detect_query_focused_heads, relevant_by_gain, tells_apart
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments


@dataclass(frozen=True)
class HeadTask:
    """The queries and documents on which heads are tested.

    Args:
        queries: B texts.
        documents: B lists of K texts.
        relevant: `(B, K)`, as `detect_query_focused_heads` takes it.
        gold: the source of `relevant`, in words.
    """

    queries: list[str]
    documents: list[list[str]]
    relevant: np.ndarray
    gold: str


def detect_heads(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Write the recipe's `heads` file."""
    if not processes(args).is_main_process:
        return
    scored = detect(model, data, seed=args.seed) if model.head_scores is None else HeadSet.load(model.head_scores)
    found = scored.select(model.num_heads, model.head_selection, seed=args.seed)
    found.save(model.heads)
    first = ", ".join(f"{layer}.{head} ({found.scores[layer][head]:.2f})" for layer, head in found.heads[:4])
    say(f"{model.heads}: {len(found.heads)} heads ({model.head_selection}), by {found.score_name}: {first}")


def detect(model: ModelArguments, data: DataArguments, *, seed: int) -> HeadSet:
    """Score all heads by the recipe's method and select the best."""
    start = time.monotonic()
    collection = load_training_collection(data)
    task = head_task(collection, data, seed=seed)
    lm = load_llm(model)
    found = detect_query_focused_heads(
        lm,
        task.queries,
        documents=task.documents,
        relevant=task.relevant,
        template=data.template,
        max_document_tokens=data.max_document_tokens,
        layout=data.head_layout or data.document_layout,
        score="correlation" if data.head_method == "correlation" else "reciprocal_rank",
        num_heads=model.num_heads,
        seed=seed,
    )
    how = {"method": data.head_method, "gold": task.gold, "collection": collection.name}
    seconds = round(time.monotonic() - start, 1)
    return dataclasses.replace(found, settings={**how, **found.settings, "seconds": seconds})


def head_task(collection: Collection, data: DataArguments, *, seed: int) -> HeadTask:
    """Draw at most `head_queries` queries of the recipe's method whose documents are not all equally relevant."""
    needle = data.head_method == "needle"
    task = needle_task(collection, data, seed=seed) if needle else candidate_task(collection, data)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(tells_apart(task.relevant)))[: data.head_queries]
    queries, documents = [task.queries[i] for i in drawn], [task.documents[i] for i in drawn]
    return HeadTask(queries, documents, task.relevant[drawn], task.gold)


def candidate_task(collection: Collection, data: DataArguments) -> HeadTask:
    """The training queries with their candidates; gains or judgements say which candidates are relevant."""
    candidates = load_candidates(data, collection)
    if data.head_method == "qrels":
        split = str(data.head_qrels)
        relevant, gold = relevance(candidates, collection.split_qrels(split)), f"qrels/{split}.tsv"
    else:
        gain = read_gains(data.gains, candidates, corpus=collection.corpus)
        by_rank = data.head_method == "gain"
        relevant = relevant_by_gain(gain) if by_rank else gain
        gold = "candidate of the highest gain" if by_rank else "gain of every candidate"
    documents = [[collection.corpus[d].content for d in c.document_ids] for c in candidates]
    return HeadTask([c.query for c in candidates], documents, relevant, gold)


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
    return HeadTask([n.query for n in needles], [list(n.documents) for n in needles], relevant, gold)
