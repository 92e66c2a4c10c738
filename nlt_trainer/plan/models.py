"""Load the LLM and the encoder of a recipe, count the FLOPs of reading a text, and time a training step."""

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
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

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
    "early_stopping_patience": None, "gradient_accumulation_steps": 1, "document_cache_gib": 0.0, "temperatures": None,
    "teacher_temperature": 1.0, "prior_weight": 0.0,
}  # fmt: skip
"""Settings of a trainer that runs only to be timed."""


@dataclass(frozen=True)
class Work:
    """The tokens that a model reads, without padding, and the FLOPs that they cost."""

    tokens: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops)

    def __mul__(self, factor: float) -> Work:
        return Work(self.tokens * factor, self.flops * factor)


@dataclass(frozen=True)
class Model:
    """The LLM or the encoder. `loaded` is unset without its weights, `transformer` for a table of embeddings."""

    transformer: Any
    tokenizer: Any = None
    loaded: Any = None
    seconds: float = 0.0

    @property
    def frame(self) -> PromptFrame:
        """The tokenizer and the context length of an LLM, with which its prompts are built."""
        name = self.transformer.name_or_path
        return PromptFrame(name, self.tokenizer, None, context_length(self.transformer.config, name))

    @cached_property
    def multiplied(self) -> int:
        """Count the weights that multiply each token: all but the embedding table and the vocabulary projection."""
        ends = [self.transformer.get_input_embeddings(), self.transformer.get_output_embeddings()]
        tables = {id(end.weight) for end in ends if end is not None}
        return sum(p.numel() for p in self.transformer.parameters() if id(p) not in tables)

    def read(self, tokens: int, *, after: int = 0, targets: int = 0, gradients: int = 0) -> Work:
        """Return the work of reading a text behind `after` tokens that it sees; `targets` of its tokens are predicted.

        A weight costs each token 2 FLOPs forward, 2 for the gradient of its input and 2 for its own gradient.
        `gradients` is 0 without gradients, 1 with those of inputs and 2 with those of weights too. In attention
        each pair of positions costs 4 FLOPs forward and 8 backward, for every layer and every unit of its width.
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
        """Return the work of reading texts of token ids, each alone."""
        return sum((self.read(len(text)) for text in texts), Work())

    @property
    def weight_bytes(self) -> float:
        return sum(p.numel() * p.element_size() for p in (self.transformer or self.loaded).parameters())

    def training_bytes(self, tokens: float) -> float:
        """Estimate the bytes that training adds to weights: Adam's state and the activations of `tokens` tokens."""
        weights = (self.transformer or self.loaded).parameters() if self.loaded else ()
        adam = 16 * sum(p.numel() for p in weights if p.requires_grad)  # float32: gradient, 2 moments, update
        if self.transformer is None:
            return adam
        rows = self.multiplied / self.transformer.config.get_text_config().hidden_size  # 2 numbers per row and token
        return adam + 2 * rows * tokens * self.transformer.dtype.itemsize


def find_model(what: str, model: ModelArguments, load: Callable[..., Any], *, notes: list[str]) -> Model | None:
    """Load the `llm` or the `encoder`. If its weights are missing, load only its configuration and tokenizer."""
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
    """Return a call's result and its seconds, which include the work of the accelerator."""
    begin = time.monotonic()
    result = call()
    return result, _now() - begin


def _now() -> float:
    """Seconds on a clock that nobody sets, when the accelerator has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


class StepClock(TrainerCallback):
    """Measures the seconds of all steps without what the trainer does before them."""

    begin = seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin = _now()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds = _now() - self.begin


def time_step(parts: Parts, rows: Sequence[QueryCandidates], collection: Collection, *, steps: int) -> float:
    """Return the seconds of one training step on these rows. Each step reads its documents anew.

    Objectives that read no LLM cost the same, so one stands for all. Gains and DREAM's heads are drawn at random.
    """
    names = LLM_OBJECTIVES & set(parts.args.objectives)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # the trainer prints its metrics
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
        trainer.add_callback(clock := StepClock())
        trainer.train()
        return clock.seconds / steps
