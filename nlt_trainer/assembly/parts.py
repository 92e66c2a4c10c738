"""Make the objects that several stages need from a recipe's arguments: collection, candidates, LLM and others."""

from __future__ import annotations

import logging
import os
import random
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, WordEmbeddings
from transformers import AutoConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils.logging import set_tqdm_hook

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments, start_options
from nlt_trainer.choices import TargetKind
from nlt_trainer.data.beir import Collection, Query, load_collection, training_queries
from nlt_trainer.data.candidates import QueryCandidates, read_candidates
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import check_no_adapter
from nlt_trainer.encoder.similarity import check_similarity
from nlt_trainer.errors import NLTError
from nlt_trainer.files import alone_in
from nlt_trainer.lm.completion_server import CompletionServer
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.ray_scoring import RayScorer
from nlt_trainer.lm.remote_scoring import RemoteScorer
from nlt_trainer.lm.scorer import Scorer
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.locations import is_server, resolve_model
from nlt_trainer.prompts import default_target
from nlt_trainer.ray_workers import RayWorkers
from nlt_trainer.terminal import late_bar
from nlt_trainer.training_arguments import NLTTrainingArguments

logger = logging.getLogger(__name__)


def processes(args: TrainingArguments) -> PartialState:
    """The processes that `accelerate launch` or `torchrun` started; they wait for each other up to `ddp_timeout`.

    Raises:
        NLTError: several processes were started but do not know of each other, as on a CPU without `use_cpu`.
    """
    set_tqdm_hook(late_bar)
    _ = args.device  # sets up accelerate's state as the trainer needs it
    state = PartialState()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise NLTError(
            f"{started} processes were started, and each believes that it is one of {state.num_processes}; "
            "without an accelerator add --use_cpu true"
        )
    return state


def ray_workers(args: NLTTrainingArguments) -> RayWorkers | None:
    """The workers of a recipe with `engine: ray`, the same ones for all stages of a program; else `None`.

    Raises:
        NLTError: several processes were started, or Ray is not installed.
    """
    if args.engine != "ray":
        return None
    if (number := processes(args).num_processes) > 1:
        raise NLTError(
            f"engine: ray starts its workers itself, and {number} processes were started; run one, without accelerate "
            "launch, and set ray_workers"
        )
    return ray_workers_at(args.ray_address, args.ray_workers, args.use_cpu)


@cache
def ray_workers_at(address: str | None, number: int | None, use_cpu: bool) -> RayWorkers:
    """Workers that a program starts once, because others would wait for the places that these hold."""
    return RayWorkers(address=address, number=number, use_cpu=use_cpu)


def alone(args: TrainingArguments) -> AbstractContextManager[None]:
    """Let no other program train or evaluate in the recipe's `output_dir` until the block ends, see `alone_in`."""
    return alone_in(str(args.output_dir)) if processes(args).is_main_process else nullcontext()


def resident_peak() -> int:
    """The most memory that this process has held since its program was started, bytes."""
    if sys.platform == "linux":  # there ru_maxrss starts at the memory of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        if found := [line.split()[1] for line in lines if line.startswith("VmHWM:")]:  # some sandboxes leave it out
            return int(found[0]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # bytes on macOS, else KiB


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held since it was started, GiB; also that of an accelerator."""
    peak = {"peak_memory_gib": resident_peak() / 2**30}
    if torch.cuda.is_available():
        peak["peak_accelerator_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 2) for name, value in peak.items()}


def check_batches(rows: int, args: TrainingArguments) -> int:
    """Number of rows that each epoch leaves out because they do not fill a batch of all processes.

    Raises:
        NLTError: all rows would be left out.
    """
    batch = args.train_batch_size * args.world_size
    if not args.dataloader_drop_last:
        return 0
    if rows < batch:
        raise NLTError(
            f"{rows} training rows do not fill one batch of {batch} (per_device_train_batch_size "
            f"{args.train_batch_size} x {args.world_size} processes), and a batch that is not full is left out "
            "(dataloader_drop_last, which several processes always have); lower per_device_train_batch_size, start "
            "fewer processes, or set dataloader_drop_last: false for one"
        )
    return rows % batch


def load_training_collection(data: DataArguments) -> Collection:
    """Load the collection with only those qrels that the recipe names."""
    named = {data.train_split, data.head_qrels}
    return load_collection(data.collection, splits=sorted(split for split in named if split))


def chosen_queries(collection: Collection, data: DataArguments, *, seed: int) -> list[Query]:
    """The training queries in the collection's order; if there are more than `max_queries`, so many are drawn."""
    queries = training_queries(collection, data.train_split)
    if data.max_queries is None or data.max_queries >= len(queries):
        return queries
    drawn = sorted(random.Random(seed).sample(range(len(queries)), data.max_queries))
    return [queries[i] for i in drawn]


def load_candidates(data: DataArguments, collection: Collection) -> list[QueryCandidates]:
    """Read the recipe's candidates.

    Raises:
        DataError: the file is not what `mine` writes, or has another number of candidates than the recipe.
        NLTError: the file has more queries than the recipe allows, or a query on which the recipe does not train, or a
            query whose text or answer in the collection is different.
    """
    candidates = read_candidates(data.candidates, collection, num_candidates=data.num_candidates)
    _check_queries(candidates, collection, data)
    if data.max_queries is not None and len(candidates) > data.max_queries:
        raise NLTError(
            f"{data.candidates} has {len(candidates)} queries and max_queries is {data.max_queries}; only mine draws "
            "them: run nlt mine again or set max_queries as it was"
        )
    return candidates


def _check_queries(candidates: list[QueryCandidates], collection: Collection, data: DataArguments) -> None:
    """Raise `NLTError` for queries that are held out of training, are unknown or have changed since mining."""
    known = {query.id: (query.text, query.answer) for query in training_queries(collection, data.train_split)}
    source = data.collection if data.train_split is None else f"split {data.train_split!r} of {data.collection}"
    foreign = [c.query_id for c in candidates if c.query_id not in known]
    if foreign:
        raise NLTError(
            f"{data.candidates} has {len(foreign)} queries that are not in {source}, e.g. {foreign[0]!r}; "
            "run nlt mine again, or set collection and train_split as they were"
        )
    changed = [c.query_id for c in candidates if known[c.query_id] != (c.query, c.answer)]
    if changed:
        raise NLTError(
            f"{data.candidates} has another text or answer than {data.collection} for {len(changed)} queries, e.g. "
            f"{changed[0]!r}; run nlt mine again"
        )


def load_untrained(model: ModelArguments) -> SentenceTransformer:
    """Load the recipe's encoder in float32, without what training would add, such as an adapter."""
    return load_encoder(model.encoder, **start_options(vars(model)))


def reads_whole_texts(encoder: SentenceTransformer) -> bool:
    """Whether an encoder is a table of embeddings of tokens or words, in which texts are not cut for training."""
    return isinstance(encoder[0], StaticEmbedding | WordEmbeddings)


def load_start(model: ModelArguments, backbone: FrozenLM | None = None) -> SentenceTransformer:
    """Load the encoder to train; if the backbone is shared, it uses the LLM's weights.

    Raises:
        NLTError: `train_max_length` is set for an encoder that reads whole texts, bfloat16 weights or none would be
            trained, the encoder is an adapter on another model, it does not rank documents by cosines, or an adapter
            would be saved for other weights than it was trained on.
    """
    if model.encoder_dtype == "bfloat16" and not model.lora:
        raise NLTError(
            "encoder_dtype bfloat16 rounds small steps of its weights away; set lora, or float32 with bf16: true"
        )
    encoder = load_encoder(
        model.encoder, dtype=model.encoder_dtype, lora=model.lora, backbone=backbone, **start_options(vars(model))
    )
    if not model.lora:
        check_no_adapter(encoder, model.encoder)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise NLTError(
            f"encoder {model.encoder!r} has no weights that training changes; choose another one, or if it is a table "
            "of word vectors set update_embeddings in its wordembedding_config.json to true"
        )
    if model.train_max_length is not None and reads_whole_texts(encoder):
        raise NLTError(
            f"encoder {model.encoder!r} is a table of embeddings and reads whole texts; leave train_max_length out"
        )
    if not model.merge_lora:
        check_base_dtype(encoder, model.encoder)
    check_similarity(encoder)
    return encoder


def check_base_dtype(encoder: SentenceTransformer, name: str) -> None:
    """Refuse to save an adapter alone that is trained on other weights than its base's folder has.

    Raises:
        NLTError: the base is rounded to another dtype than its own.
    """
    stored = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False).dtype
    used = next(parameter.dtype for parameter in encoder.parameters() if not parameter.requires_grad)
    if used not in (stored, torch.float32):
        raise NLTError(
            f"merge_lora: false saves an adapter that names {name!r}, whose weights are {stored}, and it would be "
            f"trained on weights that are rounded to {used}; set merge_lora: true, or load the encoder in float32"
        )


def load_llm(model: ModelArguments) -> FrozenLM:
    """Load the frozen LLM of a recipe."""
    return FrozenLM.from_pretrained(
        model.llm,
        revision=model.llm_revision,
        adapter=model.adapter,
        dtype=model.llm_dtype,
        device=model.llm_device,
    )


def target_of(data: DataArguments, candidates: list[QueryCandidates]) -> TargetKind:
    """The recipe's target. If the recipe names none, it is joint if every query has an answer, else query.

    Raises:
        NLTError: the recipe's target needs answers, and a query has none.
    """
    without = [c.query_id for c in candidates if not c.answer]
    if data.target is None:
        if 0 < len(without) < len(candidates):
            logger.warning(
                "%d of %d queries have no answer, e.g. %r, so that the target is query for all, without answers; add "
                "those that are missing to queries.jsonl and run nlt mine again, or set target: query",
                len(without), len(candidates), without[0],
            )  # fmt: skip
        return default_target(has_answers=not without)
    if data.target != "query" and without:
        raise NLTError(
            f"target {data.target!r} needs answers, and {len(without)} queries of {data.collection} have none, e.g. "
            f"{without[0]!r}; add them to queries.jsonl or set target: query"
        )
    return data.target


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> PromptTokens:
    """Make the tokeniser of a recipe's prompts."""
    return PromptTokens(tokenizer, data.template, max_document_tokens=data.max_document_tokens)


def load_scorer(
    model: ModelArguments, data: DataArguments, *, target: TargetKind, workers: RayWorkers | None = None
) -> Scorer:
    """Load the recipe's LLM and make its scorer, or that of the server that the recipe names in its place.

    Args:
        model: names the LLM.
        data: says how it is asked, and where scores are kept.
        target: what the LLM predicts.
        workers: workers of Ray, which load the LLM in the place of this process.

    Raises:
        NLTError: the server cannot be asked, or an adapter is named for it.
    """
    if not is_server(model.llm):
        if workers is None:
            return make_scorer(load_llm(model), data, target=target)
        make = partial(_scorer_in_worker, _for_workers(model), data, target)
        return RayScorer(make, workers=workers, cache_folder=data.score_cache)
    if model.adapter is not None:
        raise NLTError("adapter belongs to an LLM on this machine; let the server load it, and name it by llm_model")
    return RemoteScorer(
        CompletionServer(model.llm, model=model.llm_model),
        tokenizer=model.llm_tokenizer,
        target=target,
        template=data.template,
        max_document_tokens=data.max_document_tokens,
        requests=model.llm_requests,
        revision=model.llm_revision,
        cache_folder=data.score_cache,
    )


def _for_workers(model: ModelArguments) -> ModelArguments:
    """The same LLM as a worker names it: its folder is that in which its node was started, and it sees one GPU."""

    def whole(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    device = model.llm_device and model.llm_device.partition(":")[0]
    return replace(model, llm=whole(model.llm), adapter=model.adapter and whole(model.adapter), llm_device=device)


def _scorer_in_worker(model: ModelArguments, data: DataArguments, target: TargetKind) -> LikelihoodScorer:
    return make_scorer(load_llm(model), data, target=target, cached=False)


def make_scorer(lm: FrozenLM, data: DataArguments, *, target: TargetKind, cached: bool = True) -> LikelihoodScorer:
    """Make the scorer of a recipe, with its cache unless another process keeps the scores."""
    return LikelihoodScorer(
        lm,
        target=target,
        template=data.template,
        max_document_tokens=data.max_document_tokens,
        batch_tokens=data.batch_tokens,
        cache_folder=data.score_cache if cached else None,
    )
