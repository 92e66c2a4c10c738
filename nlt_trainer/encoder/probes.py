"""Probe an encoder with a few fixed texts, and find the first layer at which two encoders differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.errors import DataError
from nlt_trainer.files import atomic_write_bytes

TEXTS = (
    "how do I parse a date?",
    "owl",
    "Größe, naïve; 数据 и данные: 3.14 < x[i] -> 'y'\n\tend",
    "The river carries sand to the sea, where it settles. " * 40,
)
"""Probe texts, each read as a query and as a document: short, one word, other scripts, longer than many limits."""

TOLERANCE = 1e-5
"""Largest difference between two numbers of embeddings that count as equal, in float32."""

SAMPLE = 64
"""Numbers of a layer's output that a probe keeps, evenly spaced."""


@dataclass(frozen=True)
class Probe:
    """An encoder's answer to `TEXTS`.

    Args:
        query: `(P, D)` float32, the embeddings with the encoder's query prompt.
        document: `(P, D)` float32, those with its document prompt.
        layers: module name -> up to 64 numbers of its output for the first text as a query, in the order in which the
            modules have finished; `tokens` comes first and holds the token ids.
    """

    query: Tensor
    document: Tensor
    layers: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all. The library's own temporary file would outlive a kill."""
        layers = {f"layers/{number:06}/{name}": value for number, (name, value) in enumerate(self.layers.items())}
        with atomic_write_bytes(path) as handle:
            handle.write(save({"query": self.query, "document": self.document, **layers}))

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read what `save` has written.

        Raises:
            DataError: there is no such file, or it is not whole.
        """
        if not path.is_file():
            raise DataError(path, "file not found; `nlt train` writes it: train again")
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        except SafetensorError as error:
            raise DataError(path, f"cannot be read ({error}); `nlt train` writes it: train again") from error
        layers = {key.split("/", 2)[2]: value for key, value in tensors.items() if key.startswith("layers/")}
        return cls(tensors["query"], tensors["document"], layers)


EncodeFunction = Callable[[list[str]], Any]


def probe(
    encoder: SentenceTransformer,
    *,
    encode_query: EncodeFunction | None = None,
    encode_document: EncodeFunction | None = None,
) -> Probe:
    """Let an encoder read `TEXTS` on the CPU, in float32 and in evaluation mode. It stays there and in this state.

    Args:
        encoder: the encoder.
        encode_query: texts -> `(P, D)` array, for a program that wraps the encoder; default the encoder's own.
        encode_document: the same for documents.
    """
    encoder.float().cpu().eval()
    options: dict[str, Any] = {"show_progress_bar": False, "batch_size": 1}  # programs pad larger batches differently
    query = encode_query or (lambda texts: encoder.encode_query(texts, **options))
    document = encode_document or (lambda texts: encoder.encode_document(texts, **options))
    with _observed(encoder) as layers:
        query([TEXTS[0]])
    queries, documents = (torch.as_tensor(encode(list(TEXTS))).float() for encode in (query, document))
    return Probe(queries, documents, layers)


@contextmanager
def _observed(encoder: SentenceTransformer) -> Iterator[dict[str, Tensor]]:
    """Collect a sample of each module's output while the block runs; a module that runs again keeps its first."""
    layers: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if (tensor := _tensor(output)) is not None:
                layers.setdefault(name, _sample(tensor))

        return hook

    def keep_tokens(module: nn.Module, inputs: Any) -> None:
        layers.setdefault("tokens", inputs[0]["input_ids"].flatten().cpu().float())

    modules = [(name, module) for name, module in encoder.named_modules() if name]
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules]
    hooks.append(encoder[0].register_forward_pre_hook(keep_tokens))
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, the embeddings of a Sentence-Transformers module, or the first."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        keys = [key for key in ("sentence_embedding", "token_embeddings", "last_hidden_state") if key in output]
        return output[keys[0]] if keys else None
    return output[0] if isinstance(output, tuple) and output and isinstance(output[0], Tensor) else None


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[torch.linspace(0, flat.numel() - 1, min(SAMPLE, flat.numel())).long()].float().cpu()


def difference(found: Probe, expected: Probe, *, tolerance: float = TOLERANCE) -> str | None:
    """Say where two encoders differ.

    Args:
        found: probe of the encoder in question.
        expected: probe of the encoder that it should equal.
        tolerance: largest difference of a number in an embedding that counts as equal.

    Returns:
        `None` where all embeddings are equal; else the largest difference, and the first layer in the order of the
        computation whose output differs.
    """
    worst = 0.0
    for name in ("query", "document"):
        a, b = getattr(found, name), getattr(expected, name)
        if a.shape != b.shape:
            return f"{name} embeddings have {a.shape[1]} numbers instead of {b.shape[1]}"
        worst = max(worst, float((a - b).abs().nan_to_num(nan=torch.inf).max()))
    if worst <= tolerance:
        return None
    return (
        f"embeddings differ by up to {worst:.2g}; {_first_layer(found.layers, expected.layers, tolerance=tolerance)}"
    )


def _first_layer(found: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float) -> str:
    for name, b in expected.items():
        a = found.get(name)
        if a is None:
            continue  # a merged adapter no longer has modules of its own
        if a.shape != b.shape or not torch.allclose(a, b, rtol=tolerance, atol=tolerance):
            if name == "tokens":
                return "already the tokens of a query do (prompt, tokenizer or max_seq_length)"
            return f"the first layer that differs is {name}"
    return "each layer agrees on the first query: a document's prompt or a long text's limit differs"
