"""A recipe's models as far as they are on this machine, what reading costs them, and how long a step takes."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.trainer import LLM_OBJECTIVES
from nlt_trainer.assembly.losses import Parts
from nlt_trainer.assembly.training import make_trainer
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.training import training_dataset
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.dtypes import resolved_dtype
from nlt_trainer.lm.frozen_lm import FrozenLM, context_length
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.locations import loading, resolve_model

T = TypeVar("T")

TIMED_ALONE: dict[str, Any] = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "no") | {
    "report_to": "none", "disable_tqdm": True, "load_best_model_at_end": False, "push_to_hub": False,
    "gradient_accumulation_steps": 1, "document_cache_gib": 0.0, "temperatures": None,
}  # fmt: skip
"""Settings of a trainer that is only timed."""


@dataclass(frozen=True)
class Work:
    """Tokens that a model reads, without padding, and the FLOPs that they cost."""

    tokens: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops)

    def __mul__(self, factor: float) -> Work:
        return Work(self.tokens * factor, self.flops * factor)


@dataclass(frozen=True)
class Model:
    """The recipe's LLM or encoder, `loaded` where its weights are here; a table of embeddings has no transformer."""

    transformer: Any
    tokenizer: Any = None
    loaded: Any = None
    seconds: float = 0.0

    @property
    def frame(self) -> PromptFrame:
        """What the texts that an LLM reads are built with."""
        name = self.transformer.name_or_path
        return PromptFrame(name, self.tokenizer, None, context_length(self.transformer.config, name))

    @cached_property
    def multiplied(self) -> int:
        """Weights that each token is multiplied with: all but the embedding table and the vocabulary projection."""
        ends = [self.transformer.get_input_embeddings(), self.transformer.get_output_embeddings()]
        tables = {id(end.weight) for end in ends if end is not None}
        return sum(p.numel() for p in self.transformer.parameters() if id(p) not in tables)

    def read(self, tokens: int, *, after: int = 0, targets: int = 0, gradients: int = 0) -> Work:
        """Reading a text whose tokens see those before them and `after` earlier ones; `targets` of it are predicted.

        A multiplication with a weight is 2 FLOPs forward, 2 for the gradient of what goes in, 2 for that of the
        weight; a pair of positions costs 4 a layer and unit of width forward (scores, values) and 8 backward.
        `gradients` is how many of the gradients are computed: none, 1 or 2.
        """
        if self.transformer is None:
            return Work()
        config, pairs = self.transformer.config.get_text_config(), tokens * after + tokens * (tokens + 1) / 2
        # Some architectures say how wide a head is; the others divide the width of a layer.
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = 4 * config.num_hidden_layers * config.num_attention_heads * size * pairs
        projection = 2 * config.hidden_size * config.vocab_size * targets
        more = 3 * attention + 2 * projection if gradients else attention + projection
        return Work(tokens, (1 + gradients) * 2 * self.multiplied * tokens + more)

    def read_all(self, texts: Iterable[Sequence[int]]) -> Work:
        """Reading texts of token ids, each alone."""
        return sum((self.read(len(text)) for text in texts), Work())

    @property
    def weight_bytes(self) -> float:
        return sum(p.numel() * p.element_size() for p in (self.transformer or self.loaded).parameters())

    def training_bytes(self, tokens: float) -> float:
        """About what training keeps beside the weights: Adam's numbers of trained ones, what a graph has of tokens."""
        weights = (self.transformer or self.loaded).parameters() if self.loaded else ()
        adam = 16 * sum(p.numel() for p in weights if p.requires_grad)  # gradient, moments, a step's result: float32
        if self.transformer is None:
            return adam
        rows = self.multiplied / self.transformer.config.get_text_config().hidden_size  # each makes about two numbers
        return adam + 2 * rows * tokens * self.transformer.dtype.itemsize


def find_model(what: str, model: ModelArguments, load: Callable[..., Any], *, notes: list[str]) -> Model | None:
    """Load the `llm` or the `encoder` or, where its weights are not here, its configuration and tokenizer."""
    name, revision, dtype = (vars(model)[key] for key in (what, f"{what}_revision", f"{what}_dtype"))
    try:
        loaded, seconds = timed(lambda: load(model))
        transformer = loaded.model if isinstance(loaded, FrozenLM) else loaded.transformers_model
        return Model(transformer, transformer and loaded.tokenizer, loaded, seconds)
    except NLTError as error:
        notes.append(f"The {what} is not timed: {error}")
    with suppress(NLTError), loading(what, name), torch.device("meta"):
        name = resolve_model(name)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        dtype = getattr(torch, resolved_dtype(dtype, model.llm_device))
        transformer = (AutoModelForCausalLM if what == "llm" else AutoModel).from_config(config, dtype=dtype)
        return Model(transformer, AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False))
    return None


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and its seconds; an accelerator has finished its work by then."""
    begin = time.monotonic()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.monotonic() - begin


def time_step(parts: Parts, rows: Sequence[QueryCandidates], collection: Collection, *, steps: int) -> float:
    """Seconds of a step of the recipe's trainer on these rows; no document is kept from step to step.

    Objectives that read no LLM cost alike: one stands for all. Gains are made up, and DREAM's heads drawn.
    """
    names = LLM_OBJECTIVES & set(parts.args.objectives)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # the trainer prints its sums
        model = dataclasses.replace(parts.model, heads=f"{folder}/heads.json")
        if names:
            heads = HeadSet((), ((0.0,) * parts.lm.num_heads,) * parts.lm.num_layers, "", parts.lm.fingerprint, {})
            heads.select(model.num_heads, "random").save(model.heads)
        own: Any = {"per_device_train_batch_size": len(rows), "max_steps": steps, "output_dir": folder}
        args = dataclasses.replace(parts.args, objective=" + ".join(names or ["likelihood_gain"]), **TIMED_ALONE | own)
        data = dataclasses.replace(parts.data, dev_split=None)
        gain = np.random.default_rng(0).normal(size=(len(rows), len(rows[0].document_ids)))
        dataset = training_dataset(collection, rows, gain=gain)
        trainer, _ = make_trainer(dataclasses.replace(parts, model=model, data=data, args=args), dataset)
        return float(trainer.train().metrics["train_runtime"]) / steps
