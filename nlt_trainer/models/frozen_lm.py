"""A causal language model that is only read: no parameter has a gradient, no trainer wraps or saves it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nlt_trainer.errors import NLTError
from nlt_trainer.models.locations import content_hash, resolve_model

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class FrozenLM:
    """A frozen causal LLM with its tokenizer. A plain object, so that a loss that holds it does not own its weights.

    Args:
        model: decoder with a language-model head, in eval mode, no parameter requires a gradient.
        tokenizer: its tokenizer.
        name: as the recipe has it.
        fingerprint: what a score depends on (weights, adapter, tokenizer, dtype); part of cache keys and head files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: dict[str, str | None]

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        _check_projection(self)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        dtype: str = "float32",
        device: str | torch.device | None = None,
    ) -> FrozenLM:
        """Load an LLM and, where given, merge a LoRA adapter into it.

        Args:
            name: anything that `resolve_model` takes.
            revision: of a Hub model.
            adapter: Hub id or folder of a PEFT adapter that was trained on this LLM.
            dtype: `float32`, `bfloat16` or `float16`.
            device: default CUDA where there is one, else CPU.

        Raises:
            NLTError: the model or the adapter cannot be found, or the adapter belongs to another base.
        """
        location = resolve_model(name)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                location, revision=revision, dtype=dtype, use_safetensors=True
            )
            tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
        except (OSError, ValueError) as error:  # ValueError: a folder without a model that transformers knows
            raise NLTError(f"LLM {name!r} cannot be loaded: {error}") from error
        fingerprint = {
            "weights": _weights_id(location, model),
            "adapter": None,
            "tokenizer": _tokenizer_hash(tokenizer),
            "dtype": dtype,
        }
        if adapter is not None:
            model, fingerprint["adapter"] = _merge_adapter(model, adapter, base=name, base_location=location)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(place)  # type: ignore[arg-type]  # transformers wraps `to` in a decorator that hides its signature
        return cls(model, tokenizer, name, fingerprint)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def num_heads(self) -> int:
        return int(self.model.config.get_text_config().num_attention_heads)

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def id(self) -> str:
        """Hash of the fingerprint (16 hex digits)."""
        return hashlib.blake2b(json.dumps(self.fingerprint, sort_keys=True).encode(), digest_size=8).hexdigest()

    def project(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits in float32 of final hidden states: `(..., hidden)` to `(..., vocabulary)`.

        Does what the model's own head does (soft cap of Gemma 2, scaling of Granite), at chosen positions only;
        `__post_init__` compares it with the model's own logits.
        """
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden).float()
        scaling = getattr(config, "logits_scaling", None)  # architecture-specific entries of the configuration
        softcap = getattr(config, "final_logit_softcapping", None)
        if scaling:
            logits = logits / scaling
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        return logits

    def target_loss(self, hidden: Tensor, labels: Tensor, *, slice_size: int = 256) -> Tensor:
        """Negative log-likelihood of each label, nats, with the projection in slices.

        Args:
            hidden: `(N, hidden)`, the states that predict the labels.
            labels: `(N,)` token ids.
            slice_size: positions projected at once; bounds the memory to `slice_size * vocabulary`.
        """
        pieces = [
            torch.nn.functional.cross_entropy(self.project(h), y, reduction="none")
            for h, y in zip(hidden.split(slice_size), labels.split(slice_size), strict=True)
        ]
        return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


def _check_projection(lm: FrozenLM) -> None:
    """Refuse a model whose head does more than `FrozenLM.project` knows of."""
    ids = torch.arange(4, device=lm.device)[None]
    with torch.no_grad():
        expected = lm.model(input_ids=ids).logits.float()
        ours = lm.project(lm.model.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(expected, ours, atol=1e-2, rtol=1e-2):
        raise NLTError(
            f"LLM {lm.name!r} ({type(lm.model).__name__}): its logits are not its output embedding applied to its "
            "last hidden state, so log-likelihoods at target positions would be wrong. Choose a decoder with a plain "
            "language-model head (Llama, Qwen, Mistral, Gemma, Phi, OLMo, Granite, SmolLM families)."
        )


def _weights_id(location: str, model: PreTrainedModel) -> str:
    if Path(location).is_dir():
        return content_hash(location)
    return f"{location}@{model.config._commit_hash}"


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise NLTError(
            f"{type(tokenizer).__name__} has no tokenizer.json; convert it once: "
            "AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder)"
        )
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=8).hexdigest()


def _merge_adapter(
    model: PreTrainedModel, adapter: str, *, base: str, base_location: str
) -> tuple[PreTrainedModel, str]:
    location = str(Path(adapter).expanduser()) if adapter.startswith((".", "/", "~")) else adapter
    try:
        config = PeftConfig.from_pretrained(location)
    except (ValueError, OSError) as error:
        raise NLTError(f"adapter {adapter!r} cannot be loaded: {error}") from error
    trained_on = config.base_model_name_or_path or ""
    if trained_on and Path(trained_on).name not in {Path(base).name, Path(base_location).name}:
        raise NLTError(
            f"adapter {adapter!r} was trained on {trained_on!r}, not on {base!r}. Set the LLM to its base or leave "
            "the adapter out; if both names mean the same weights, correct base_model_name_or_path in "
            "adapter_config.json."
        )
    try:
        merged = PeftModel.from_pretrained(model, location).merge_and_unload()
    except (ValueError, RuntimeError) as error:
        raise NLTError(f"adapter {adapter!r} does not fit {base!r}: {error}") from error
    identity = content_hash(location) if Path(location).is_dir() else f"{adapter}@{config.revision or 'main'}"
    return merged, identity
