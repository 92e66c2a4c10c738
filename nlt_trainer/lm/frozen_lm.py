"""The frozen LLM: a causal language model that is only read. No parameter has a gradient, and no trainer saves it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nlt_trainer.choices import LLMDtype, check_choice
from nlt_trainer.content import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_files, content_hash, model_content
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.cpu import enable_fused_attention, keep_freed_memory
from nlt_trainer.lm.dtypes import resolved_dtype
from nlt_trainer.lm.forward_check import FORWARD_ERRORS, probe_ids, readings_agree
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.locations import is_hub_id, loading, resolve_model

logger = logging.getLogger(__name__)

DECODER_HELP = (
    "Choose a decoder with a plain language-model head: the Llama, Qwen, Mistral, Gemma, Phi, OLMo, Granite, Cohere "
    "and SmolLM families have one"
)

POSITIONS = 512
"""Target positions that `FrozenLM.target_loss` projects to the vocabulary at once."""

VOCABULARY_SLICE = 4096
"""Tokens of the vocabulary in one slice of that projection. A slice of all `POSITIONS` has 8 MiB of logits."""


@dataclass(eq=False)
class FrozenLM:
    """A frozen causal LLM with its tokenizer. It is not a module, so a loss that holds it does not own its weights.

    Args:
        model: decoder with a language-model head; it is put into eval mode, and no parameter requires a gradient.
        tokenizer: its tokenizer.
        name: as the recipe names it.
        fingerprint: what a score depends on (weights, adapter, tokenizer, dtype); part of cache keys and head files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: dict[str, str | None]

    def __post_init__(self) -> None:
        keep_freed_memory()
        self.model.eval().requires_grad_(False)
        _check_forward(self)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        dtype: LLMDtype = "float32",
        device: str | torch.device | None = None,
    ) -> FrozenLM:
        """Load an LLM and, where given, merge a LoRA adapter into it.

        Args:
            name: anything that `resolve_model` takes.
            revision: of a Hub model.
            adapter: Hub id or folder of a PEFT adapter that was trained on this LLM.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`, see `resolved_dtype`.
            device: the default is CUDA if there is one, else the CPU.

        Raises:
            NLTError: the dtype is unknown, the model or the adapter cannot be found, the model has no weights of a
                language-model head, or the adapter belongs to another base.
        """
        check_choice("LLM dtype", dtype, LLMDtype)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            place = torch.device(chosen)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError) as error:
            raise NLTError(f"device {str(chosen)!r} cannot be used ({error}); choose another llm_device") from error
        location, numbers = resolve_model(name), resolved_dtype(dtype, place)
        model: PreTrainedModel
        report: dict[str, list[str]]
        with loading("LLM", name, revision=revision):
            model, report = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]  # a pair, as asked for
                location,
                revision=revision,
                dtype=numbers,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
        if missing := sorted(report["missing_keys"]):
            raise NLTError(
                f"LLM {name!r}: its files have no weights for {missing[0]} ({len(missing)} missing), as an encoder "
                f"has none for a language-model head. {DECODER_HELP}."
            )
        fingerprint: dict[str, str | None] = {
            "weights": model_content(location, revision=revision),
            "adapter": None,
            "tokenizer": tokenizer_hash(tokenizer),
            "dtype": numbers,
        }
        if adapter is not None:
            model, fingerprint["adapter"] = _merge_adapter(model, adapter, base=name, base_location=location)
        model.to(place)  # type: ignore[arg-type]  # transformers wraps `to` in a decorator that hides its signature
        enable_fused_attention(model)
        return cls(model, tokenizer, name, fingerprint)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def revision(self) -> str | None:
        """Commit of an LLM from the Hub; `None` for a folder, whose content's hash is in the fingerprint."""
        return (self.fingerprint.get("weights") or "").partition(" on ")[0].partition("@")[2] or None

    @property
    def context_length(self) -> int:
        """The most tokens that the LLM can read.

        Raises:
            NLTError: its configuration does not say.
        """
        return context_length(self.model.config, self.name)

    @property
    def prompt_frame(self) -> PromptFrame:
        """What the texts that it reads are built with. Raises as `context_length`."""
        return PromptFrame(self.name, self.tokenizer, self.fingerprint.get("tokenizer"), self.context_length)

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a layer with a sliding window can look back; `None` where every layer sees all tokens."""
        config = self.model.config.get_text_config()
        # Only some architectures have such an entry (Mistral, Llama 4, GPT-Neo). Those without one have no window.
        windows = (getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size", "window_size"))
        return next((int(window) for window in windows if window), None)

    @property
    def rope_limit(self) -> int | None:
        """Tokens beyond which LongRoPE uses other frequencies for the whole batch; `None` without LongRoPE."""
        # Only some architectures have this entry (Phi-3). ALiBi has none, and Gemma 3 has one for each kind of layer.
        given = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        each = [given, *(entry for entry in given.values() if isinstance(entry, dict))]
        limits = [e["original_max_position_embeddings"] for e in each if e.get("rope_type") == "longrope"]
        return min(limits, default=None)

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

    def project(self, hidden: Tensor, tokens: slice = slice(None)) -> Tensor:
        """Project final hidden states to vocabulary logits, in float32 at least: `(..., hidden)` to `(..., tokens)`.

        This does what the model's own head does (soft cap of Gemma 2, scaling of Granite and Cohere), but only at
        chosen positions and for a slice of the vocabulary. `__post_init__` compares it with the model's own logits.
        """
        config, head = self.model.config.get_text_config(), self.model.get_output_embeddings()
        logits = nn.functional.linear(hidden, head.weight[tokens], None if head.bias is None else head.bias[tokens])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Only some architectures have these entries. An architecture without an entry does not have that step.
        divisor = getattr(config, "logits_scaling", None)
        factor = getattr(config, "logit_scale", None)
        softcap = getattr(config, "final_logit_softcapping", None)
        if divisor:
            logits = logits / divisor
        if factor:
            logits = logits * factor
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        return logits

    def target_loss(
        self, hidden: Tensor, labels: Tensor, *, positions: int = POSITIONS, tokens: int = VOCABULARY_SLICE
    ) -> Tensor:
        """Negative log-likelihood of each label, nats, `(N,)` in float32 at least. The projection runs in slices.

        Args:
            hidden: `(N, hidden)`, the states that predict the labels.
            labels: `(N,)` token ids.
            positions: number of states in one slice.
            tokens: number of vocabulary tokens in one slice. Without a graph, memory holds at most
                `positions * tokens` logits.
        """
        pieces = [
            self._slice_loss(h, y, tokens)
            for h, y in zip(hidden.split(positions), labels.split(positions), strict=True)
        ]
        return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)

    def _slice_loss(self, hidden: Tensor, labels: Tensor, tokens: int) -> Tensor:
        """Loss from the log-sum-exp of each vocabulary slice and from the label's logit, which is in one of them."""
        normalisers, chosen = [], []
        for begin in range(0, self.model.get_output_embeddings().weight.shape[0], tokens):
            logits = self.project(hidden, slice(begin, begin + tokens))  # (N, tokens)
            inside = (labels >= begin) & (labels < begin + logits.shape[1])
            own = logits.gather(1, (labels - begin).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            normalisers.append(logits.logsumexp(1))
            chosen.append(own.masked_fill(~inside, 0.0))
        return torch.stack(normalisers).logsumexp(0) - torch.stack(chosen).sum(0)


def context_length(config: PreTrainedConfig, name: str) -> int:
    """The most tokens that an LLM of this configuration can read.

    Raises:
        NLTError: the configuration does not say.
    """
    config = config.get_text_config()
    # Not every architecture has this entry. Bloom, MPT and Mamba have no such limit.
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise NLTError(
            f"LLM {name!r}: its {type(config).__name__} has no max_position_embeddings, so that nothing says how long "
            "a prompt may be; add the entry to its config.json or choose another decoder"
        )
    return int(length)


def _check_forward(lm: FrozenLM) -> None:
    """Refuse a model that is not a causal decoder, or whose head does more than `FrozenLM.project` does."""
    ids = probe_ids(lm.model, 4)
    name = f"LLM {lm.name!r} ({type(lm.model).__name__})"
    try:
        with torch.no_grad():
            expected = lm.model(input_ids=ids, use_cache=False).logits.float()
            hidden = lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            alone = lm.model.base_model(input_ids=ids[:, :3], use_cache=False).last_hidden_state
            ours = lm.project(hidden)
    except FORWARD_ERRORS as error:
        raise NLTError(f"{name}: it cannot be read ({type(error).__name__}: {error}). {DECODER_HELP}.") from error
    if not expected.isfinite().all():
        raise NLTError(
            f"{name}, {lm.model.dtype}: its weights give NaN or infinite logits; use dtype float32 or "
            "bfloat16 (float16 overflows), or check the weights"
        )
    if not readings_agree(hidden[:, :3], alone):
        raise NLTError(
            f"{name}: what it makes of a token changes with the tokens after it, as in an encoder. {DECODER_HELP}."
        )
    if not torch.allclose(expected, ours, atol=1e-2, rtol=1e-2):
        raise NLTError(
            f"{name}: its logits are not its output embedding applied to its last hidden state, so log-likelihoods at "
            f"target positions would be wrong. {DECODER_HELP}."
        )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise NLTError(
            f"{type(tokenizer).__name__} has no tokenizer.json; convert it once: "
            "AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder)"
        )
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=8).hexdigest()


def _merge_adapter(
    model: PreTrainedModel, adapter: str, *, base: str, base_location: str
) -> tuple[PreTrainedModel, str]:
    with loading("adapter", adapter):
        folder = _adapter_folder(adapter)
        check_files(Path(folder))
        trained_on = PeftConfig.from_pretrained(folder).base_model_name_or_path or ""
        weights = load_file(Path(folder, ADAPTER_WEIGHTS))
    if all(is_hub_id(name) and "/" in name for name in (trained_on, base_location)):
        same = trained_on == base_location
    else:  # the same weights may lie elsewhere on another machine, and gpt2 is openai-community/gpt2
        same = not trained_on or Path(trained_on).name in {Path(base).name, Path(base_location).name}
    if not same:
        raise NLTError(
            f"adapter {adapter!r} was trained on {trained_on!r}, not on {base!r}. Set the LLM to its base or leave "
            "the adapter out; if both names mean the same weights, correct base_model_name_or_path in "
            "adapter_config.json."
        )
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (ValueError, RuntimeError) as error:
        raise NLTError(f"adapter {adapter!r} does not fit {base!r}: {error}") from error
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if strange := sorted(expected ^ {name for name in weights if name in expected or "lora_" in name}):
        raise NLTError(  # peft itself only warns
            f"adapter {adapter!r} does not fit {base!r}: {strange[0]} and {len(strange) - 1} more weights belong to "
            "one of them alone; give an adapter of this LLM"
        )
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged, content_hash(folder)


def _adapter_folder(adapter: str) -> str:
    """The adapter's local folder; for a Hub id, a folder in the Hub's cache."""
    folder = Path(adapter).expanduser()
    if is_hub_id(adapter):
        folder = Path(snapshot_download(adapter, allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS]))
    if missing := [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]:
        raise NLTError(
            f"adapter {adapter!r} cannot be loaded: {folder} has no {' and no '.join(missing)}; save the adapter as "
            "safetensors with save_pretrained (adapter_model.bin is a pickle, which is not loaded)"
        )
    return str(folder)
