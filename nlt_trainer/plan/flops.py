"""What a recipe costs: from counts of what is read and the shape of a model to FLOPs, steps, files and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import POSITIONS, VOCABULARY_SLICE
from nlt_trainer.plan.readings import Reading

ACCELERATORS = {
    "T4 fp16": 65.0,
    "L4 bf16": 121.0,
    "A10 bf16": 125.0,
    "RTX 4090 bf16": 165.2,
    "A100 fp32": 19.5,
    "A100 tf32": 156.0,
    "A100 bf16": 312.0,
    "L40S bf16": 362.0,
    "H100 bf16": 989.4,
    "H200 bf16": 989.4,
    "MI300X bf16": 1307.4,
}
"""Dense matrix-multiply peaks without sparsity, TFLOP/s, from the makers' data sheets (SXM where there is one)."""

ADAM_COPIES = 5
"""A trained weight beside itself: gradient, two moments, what the step holds for a moment, what saving holds."""


@dataclass(frozen=True)
class ModelShape:
    """What of a transformer decides its cost.

    Args:
        total: all parameters.
        parameters: those that every token is multiplied with: without embedding table and vocabulary projection.
        layers: how many.
        hidden: width between layers.
        intermediate: width inside a layer's feed-forward part.
        attention: query heads times head size.
        key_value: key-value heads times head size.
        vocabulary: tokens.
        bytes_per_number: of weights and activations.
    """

    total: int
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    key_value: int
    vocabulary: int
    bytes_per_number: int = 4

    @classmethod
    def of(cls, model: PreTrainedModel, *, bytes_per_number: int = 4) -> ModelShape:
        """The shape of a transformer; one on the meta device will do."""
        config: PreTrainedConfig = model.config.get_text_config()
        tables = {id(module.weight): module.weight.numel() for module in _tables(model)}
        total = sum(parameter.numel() for parameter in model.parameters())
        heads = config.num_attention_heads
        # Entries that some architectures do not have: head size, key-value heads and width that differ from the usual.
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            total=total,
            parameters=total - sum(tables.values()),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            attention=heads * size,
            key_value=(getattr(config, "num_key_value_heads", None) or heads) * size,
            vocabulary=config.vocab_size,
            bytes_per_number=bytes_per_number,
        )

    @property
    def weight_bytes(self) -> int:
        return self.total * self.bytes_per_number

    @property
    def key_value_bytes(self) -> int:
        """Memory of one token's keys and values in all layers."""
        return 2 * self.layers * self.key_value * self.bytes_per_number

    def flops(self, reading: Reading, *, graph: float = 0.0, trained: bool = False) -> float:
        """FLOPs of reading forward and, in a share `graph` of the layers, backward; of weights too where `trained`.

        A multiplication with a weight is 2 FLOPs forward, 2 for the gradient of what goes in, 2 for that of the
        weight; a pair of positions costs 4 a layer and unit of width forward (scores, values) and 8 backward.
        """
        linear = 2 * self.parameters * reading.tokens
        attention = 4 * self.layers * self.attention * reading.pairs
        projection = 2 * self.hidden * self.vocabulary * reading.targets
        backward = graph * (linear * (2 if trained else 1) + 2 * attention) + (projection if graph else 0)
        return linear + attention + projection + backward

    def activation_bytes(self, tokens: float) -> float:
        """Memory of one layer's reading of so many tokens, without a graph."""
        width = 6 * self.hidden + 2 * self.attention + 2 * self.key_value + 3 * self.intermediate
        return tokens * width * self.bytes_per_number

    def graph_bytes(self, tokens: float, *, layers: float | None = None) -> float:
        """Memory that a backward pass keeps of so many tokens: norms, projections, the feed-forward part's inside."""
        width = 8 * self.hidden + 3 * self.attention + 2 * self.key_value + 4 * self.intermediate
        return (self.layers if layers is None else layers) * tokens * width * self.bytes_per_number

    def projection_bytes(self, targets: float = 0.0) -> float:
        """Memory of the vocabulary projection, float32: of one slice, and with a graph of all its targets."""
        positions, tokens = min(POSITIONS, targets or POSITIONS), min(VOCABULARY_SLICE, self.vocabulary)
        return 4 * (2 * positions * tokens + 2 * self.vocabulary * targets)


def _tables(model: PreTrainedModel) -> Iterator[Any]:
    """The embedding table and, where there is one, the vocabulary projection."""
    yield model.get_input_embeddings()
    if (output := model.get_output_embeddings()) is not None:
        yield output


@dataclass(frozen=True)
class Cost:
    """A part of a stage's cost: LLM tokens, FLOPs and their seconds, other seconds, memory and files in bytes."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    other: float = 0.0
    memory: float = 0.0
    files: float = 0.0

    def __add__(self, more: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(more), strict=True)))

    def __mul__(self, factor: float) -> Cost:
        return Cost(*(factor * part for part in astuple(self)))


@dataclass(frozen=True)
class Schedule:
    """How often training does what.

    Args:
        steps: optimizer steps.
        queries: rows that it sees, over all epochs and processes.
        epochs: whole or partial ones.
    """

    steps: int
    queries: int
    epochs: float

    @classmethod
    def of(
        cls, rows: int, *, batch: int, accumulation: int, epochs: float, max_steps: int, drop_last: bool
    ) -> Schedule:
        """That of transformers' trainer.

        Args:
            rows: training rows.
            batch: rows that all processes together see at once.
            accumulation: batches a step.
            epochs: passes over the rows, where `max_steps` is not positive.
            max_steps: steps, whatever the rows.
            drop_last: whether a batch that is not full is left out.
        """
        batches = rows // batch if drop_last else math.ceil(rows / batch)
        each = max(1, math.ceil(batches / accumulation))
        steps = max_steps if max_steps > 0 else math.ceil(epochs * each)
        seen = min(rows, batches * batch)
        whole, rest = divmod(steps, each)
        return cls(steps, whole * seen + min(rest * accumulation * batch, seen), steps / each)

    def times(self, strategy: str, every: float) -> int:
        """How often a strategy (`no`, `steps` or `epoch`) evaluates or saves: also after the last step.

        Below 1 `every` is a share of the steps.
        """
        if strategy == "epoch":
            return math.ceil(self.epochs)
        interval = math.ceil(every * self.steps) if every < 1 else int(every)
        return math.ceil(self.steps / max(1, interval)) if strategy == "steps" else 0


def score_cache_bytes(pairs: int, target_tokens: float) -> float:
    """Size of a `ScoreCache`: two B-trees with a row of (16 bytes, 8, 2, 1) and one of (16 bytes, 4 a token) a pair.

    Each row has about 5 bytes of its own beside its values; pages that are filled at random are 70 % full.
    """
    return 5 * 4096 + pairs * (16 + 8 + 3 + 6 + 16 + 4 * target_tokens + 5) / 0.7


def gains_bytes(query_ids: Sequence[str], document_ids: Sequence[Sequence[str]], *, token_numbers: float = 0) -> int:
    """Size of a gains file, with numbers of the usual length; `token_numbers` a candidate where tokens are written."""
    total = 0
    for query_id, documents in zip(query_ids, document_ids, strict=True):
        k = len(documents)
        row: dict[str, Any] = {"query_id": query_id, "document_ids": list(documents), "gain": [-0.123456] * k}
        row |= {"target_tokens": 10, "log_likelihood": [-12.345678] * k}
        if token_numbers:
            row["token_log_likelihoods"] = [[-1.234567] * round(token_numbers)] * k
        total += len(json.dumps(row, ensure_ascii=False).encode()) + 1
    return total


def accelerator_peak(name: str | None, tflops: float | None) -> float | None:
    """Peak in FLOP/s of a named accelerator, or a stated one; `None` where nothing is named.

    Raises:
        NLTError: an unknown name, or both or a peak that is not positive.
    """
    if name is not None and tflops is not None:
        raise NLTError(f"accelerator {name!r} has a peak of its own; leave one of accelerator, accelerator_tflops out")
    if name is not None and name not in ACCELERATORS:
        raise NLTError(
            f"accelerator {name!r} is unknown; choose one of {', '.join(ACCELERATORS)}, or give its peak "
            "with accelerator_tflops"
        )
    if tflops is not None and tflops <= 0:
        raise NLTError(f"accelerator_tflops is {tflops}; it must be greater than 0")
    peak = ACCELERATORS[name] if name is not None else tflops
    return None if peak is None else peak * 1e12
