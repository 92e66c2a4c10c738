"""The plan of evaluation, during training and after it."""

from __future__ import annotations

from nlt_trainer.arguments.evaluation import EvaluationArguments
from nlt_trainer.assembly.evaluation import reported
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.plan.context import Encoder, PlanContext, StagePlan
from nlt_trainer.plan.flops import Cost, Schedule
from nlt_trainer.plan.probes import (
    drawn,
    peak_memory,
    probe_dev_evaluation,
    probe_documents_encoded,
    probe_evaluation,
    timed,
)
from nlt_trainer.plan.readings import Reading

ENCODING_SECONDS = 0.7


def encoding(context: PlanContext, encoder: Encoder, collection: Collection) -> Cost:
    """What it takes to encode a document; with a table of token embeddings, what no accelerator changes."""
    each = probe_documents_encoded(encoder.model, collection, seconds=ENCODING_SECONDS, seed=context.args.seed)
    if encoder.shape is None or encoder.probed is None:
        return Cost(other=each)
    lengths = token_counts(context, encoder, collection)
    reading = sum(map(Reading.text, lengths), Reading()) * (1 / len(lengths))
    flops = encoder.shape.flops(reading)
    return Cost(flops=flops, seconds=each * flops / encoder.probed.flops(reading))


def token_counts(context: PlanContext, encoder: Encoder, collection: Collection) -> list[int]:
    """Tokens that a transformer reads of some documents."""
    texts = [d.content for d in drawn(list(collection.corpus.values()), 64, seed=context.args.seed)]
    counts: list[int] = encoder.model.preprocess(texts, task="document")["attention_mask"].sum(-1).tolist()
    return counts


def plan_evaluate(context: PlanContext) -> StagePlan:
    """BM25, the encoder before and the encoder after training on each collection."""
    _ = context.base  # before a model is loaded
    encoder = context.encoder
    if encoder is None:
        return StagePlan("evaluate", 0.0, None, None)
    cost, other, seed, longest = Cost(), context.start, context.args.seed, 0
    for folder, split in reported(context.data):
        try:
            collection, loading = timed(load_collection, folder, splits=[split])
        except NLTError as error:
            context.notes.append(f"not known: evaluate on {folder}, because {error}")
            continue
        each = encoding(context, encoder, collection)
        query, once = probe_evaluation(
            encoder.model, collection, split, each=each.seconds + each.other, seconds=ENCODING_SECONDS / 2, seed=seed
        )
        if encoder.shape is not None:
            longest = max(longest, *token_counts(context, encoder, collection))
        documents, queries = len(collection.corpus), len(collection.split_queries(split))
        search = queries * context.bm25.query * documents / len(context.collection.corpus)
        other += loading + documents * context.bm25.document + search + 2 * encoder.seconds
        other += 3 * (once + queries * query)
        cost += each * (2 * documents)
    other += cost.other
    memory = peak_memory() + encoder.weight_bytes  # with the encoder of the start, and then that of the run
    if encoder.shape is not None:
        memory += encoder.shape.activation_bytes(EvaluationArguments.encode_batch_size * longest)  # they come first
    return StagePlan("evaluate", 0.0, cost.flops, other + cost.seconds, other, 0.0, memory)


def dev_cost(context: PlanContext, encoder: Encoder, schedule: Schedule) -> Cost:
    """Evaluations during training."""
    args, split = context.args, context.data.dev_split
    if args.eval_strategy == "no" or split is None:
        return Cost()
    dev, loading = timed(load_collection, context.data.collection, splits=[split])
    each, seed = encoding(context, encoder, dev), args.seed
    query = probe_dev_evaluation(
        encoder.model, dev, split, each=each.seconds + each.other, seconds=ENCODING_SECONDS / 2, seed=seed
    )
    times = schedule.times(args.eval_strategy, args.eval_steps or args.logging_steps) + bool(args.eval_on_start)
    documents, queries = len(dev.corpus), len(dev.split_queries(split))
    return each * (times * documents) + Cost(other=loading + times * queries * query)
