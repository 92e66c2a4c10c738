"""The plan of evaluation, during training and after it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from nlt_trainer.arguments import DataArguments
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.planning import Cost, Schedule
from nlt_trainer.readings import Reading
from nlt_trainer.scripts.evaluate import folder_and_split
from nlt_trainer.scripts.plan_context import Encoder, PlanContext, StagePlan
from nlt_trainer.scripts.plan_probes import EncodingRate, drawn, peak_memory, probe_encoding, timed

ENCODING_SECONDS = 1.5


@dataclass(frozen=True)
class Encoding:
    """Seconds of encoding and evaluating, and FLOPs of encoding a document."""

    rate: EncodingRate
    flops: float


def probe(context: PlanContext, encoder: Encoder, collection: Collection, split: str) -> Encoding:
    """Encode and evaluate a part of a collection."""
    rate = probe_encoding(encoder.model, collection, split, seconds=ENCODING_SECONDS, seed=context.args.seed)
    if encoder.shape is None or encoder.probed is None:
        return Encoding(rate, 0.0)
    texts = [d.content for d in drawn(list(collection.corpus.values()), 64, seed=context.args.seed)]
    lengths = encoder.model.preprocess(texts, task="document")["attention_mask"].sum(-1).tolist()
    reading = sum(map(Reading.text, lengths), Reading()) * (1 / len(lengths))
    flops = encoder.shape.flops(reading)
    each = rate.document * flops / encoder.probed.flops(reading)
    return Encoding(dataclasses.replace(rate, document=each), flops)


def reported(data: DataArguments) -> list[tuple[str, str]]:
    """Collections and splits that `evaluate` reports on."""
    own = [(data.collection, data.eval_split)] if data.eval_split else []
    return [*own, *map(folder_and_split, data.eval_collections)]


def plan_evaluate(context: PlanContext) -> StagePlan:
    """BM25, the encoder before and the encoder after training on each collection."""
    encoder = context.encoder
    _ = context.base  # before anything is encoded
    if encoder is None:
        return StagePlan("evaluate", 0.0, None, None)
    cost, other = Cost(), context.start
    for folder, split in reported(context.data):
        try:
            collection, loading = timed(load_collection, folder, splits=[split])
        except NLTError as error:
            context.notes.append(f"not known: evaluate on {folder}, because {error}")
            continue
        found = probe(context, encoder, collection, split)
        documents, queries = len(collection.corpus), len(collection.split_queries(split))
        search = queries * context.bm25.query * documents / len(context.collection.corpus)
        other += loading + documents * context.bm25.document + search + 2 * encoder.seconds
        other += 3 * (found.rate.fixed + queries * found.rate.full)
        cost += Cost(flops=2 * documents * found.flops, seconds=2 * documents * found.rate.document)
    memory = peak_memory() + encoder.weight_bytes  # with the encoder of the start, and then that of the run
    return StagePlan("evaluate", 0.0, cost.flops, other + cost.seconds, other, 0.0, memory)


def dev_cost(context: PlanContext, encoder: Encoder, schedule: Schedule) -> Cost:
    """Evaluations during training."""
    args, split = context.args, context.data.dev_split
    if args.eval_strategy == "no" or split is None:
        return Cost()
    dev, loading = timed(load_collection, context.data.collection, splits=[split])
    found = probe(context, encoder, dev, split)
    times = schedule.times(args.eval_strategy, args.eval_steps or args.logging_steps) + bool(args.eval_on_start)
    documents, queries = len(dev.corpus), len(dev.split_queries(split))
    return Cost(
        flops=times * documents * found.flops,
        seconds=times * documents * found.rate.document,
        other=loading + times * queries * found.rate.light,
    )
