"""Attention of selected heads with document scores injected, through transformers' attention interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from nlt_trainer.choices import DocumentMass
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention_mass import AttentionMass, log_mass
from nlt_trainer.injection.chunk_attention import ChunkAttention
from nlt_trainer.injection.document_pool import DocumentPool
from nlt_trainer.lm.cpu import fused_attention, in_float32_on_cpu
from nlt_trainer.lm.forward_check import FORWARD_ERRORS, probe_ids, readings_agree
from nlt_trainer.lm.frozen_lm import FrozenLM

IMPLEMENTATION = "nlt_document_attention"

MASKED = torch.finfo(torch.float32).min
"""Attention logit of a key that a row does not see. With -inf, a row that sees no key would become NaN."""

INTERFACE_HELP = (
    "Score injection needs a decoder in which every layer's attention goes through transformers' AttentionInterface "
    "(set_attn_implementation) and keeps its keys and values in a DynamicCache: the Llama, SmolLM, Qwen2, Qwen3, "
    "Mistral, Gemma, Phi-3, OLMo-2, GPT-NeoX, GPT-2, Granite, StarCoder2, Cohere and GPT-OSS families"
)


@dataclass(frozen=True)
class ScoreInjection:
    """Replace, in selected heads and rows, how attention is shared among documents (DREAM, arXiv 2606.24667).

    A head's softmax row p with mass m_k on document k becomes `p'_t = p_t * w_k * (sum_j m_j) / m_k` for a token t of
    document k and stays p_t elsewhere, so that it still sums to 1. With `mass` "one" the documents get all of the
    attention, `p'_t = p_t * w_k / m_k`, and keys that belong to no document get nothing. Under a sliding window a row
    may see only some documents; w is then normalised over these. A row that sees no document is left alone.

    Args:
        log_weights: `(B, K)` float32, logarithms of the documents' shares; each row's exponentials sum to 1. With a
            pool `(B, U)`, the shares of its documents.
        documents: `(B, T)` int64, the document (0 to K - 1) of each key, K where the key belongs to none.
        rows: `(B, S)` bool, the query rows that are injected.
        heads: layer to `(h,)` int64, the heads that are injected.
        mass: whether the documents share what the head gives them or all of its attention.
        pool: U documents that the heads attend to in place of the prompts' own K. They share what the head gives the
            prompt's own, so that no head attends to documents more because the pool has more of them.
        others: `(B, T)` bool, the keys that heads which are not injected may see; `None` means all.
    """

    log_weights: Tensor
    documents: Tensor
    rows: Tensor
    heads: Mapping[int, Tensor]
    mass: DocumentMass = "kept"
    pool: DocumentPool | None = None
    others: Tensor | None = None

    def heads_of(self, layer: int) -> Tensor | None:
        return self.heads.get(layer)

    def log_weights_of(self, layer: int) -> Tensor:
        """Logarithms of the shares, `(B, 1, 1, K)`, or `(B, h, 1, K)` where heads have shares of their own."""
        return self.log_weights[:, None, None, :]

    @property
    def own(self) -> Tensor:
        """`(B, T)` bool, True at keys of the prompt's own documents."""
        return self.documents < (self.log_weights.shape[1] if self.pool is None else self.pool.num_candidates)

    def read_by_others(
        self, key: Tensor, value: Tensor, mask: Tensor | None, *, rows: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask of the heads that are not injected, without the keys that none of them sees.

        Args:
            key: `(B, key-value heads, T, head size)`.
            value: shaped as `key`.
            mask: `(B, 1, S, T)` bool, the attention's own; `None` means causal.
            rows: S.
        """
        if self.others is None:
            return key, value, mask
        seen = (causal(rows, self.others) if mask is None else mask) & self.others[:, None, None, :]
        columns = self._columns_of_others
        return key.index_select(2, columns), value.index_select(2, columns), seen.index_select(3, columns)

    @cached_property
    def _columns_of_others(self) -> Tensor:
        assert self.others is not None
        return self.others.any(0).nonzero()[:, 0]

    def attend(self, logits: Tensor, layer: int) -> Tensor:
        """Add a bias to masked attention logits or log-probabilities `(B, h, S, T)`, so that their softmax is p'."""
        document_logits = log_mass(logits, self.documents, self.log_weights.shape[1])  # (B, h, S, K)
        seen = document_logits > MASKED
        document_logits = document_logits.masked_fill(~seen, MASKED)
        log_weights = self.log_weights_of(layer).masked_fill(~seen, MASKED).log_softmax(-1)
        injected = seen & self.rows[:, None, :, None]
        before = document_logits.log_softmax(-1) if self.mass == "kept" else document_logits
        # A document's masked keys stay masked, because MASKED plus a bias of ordinary size rounds to MASKED.
        bias = torch.where(injected, log_weights - before, 0.0)
        bias = nn.functional.pad(bias, (0, 1))  # column K: no document, no bias
        if self.mass == "one":
            bias[..., -1].masked_fill_(injected.any(-1), -torch.inf)
        return logits + bias.gather(-1, self.documents[:, None, None, :].expand_as(logits))

    def attend_to_pool(self, logits: Tensor, among: Tensor) -> Tensor:
        """Attention log-probabilities over the prompt's own keys and the pool's: `(B, h, S, T + N)`.

        Args:
            logits: `(B, h, S, T)`, masked attention log-probabilities of the prompt's own keys.
            among: `(B, h, S, N)`, attention logits of the pool's keys, which are compared within each document only.
        """
        assert self.pool is not None
        own = self.own[:, None, None, :]
        total = logits.masked_fill(~own, MASKED).logsumexp(-1, keepdim=True)  # (B, h, S, 1)
        injected = self.rows[:, None, :, None] & (total > MASKED / 2)
        number = self.pool.documents.expand(len(logits), -1)  # (B, N)
        document_logits = log_mass(among, number, self.log_weights.shape[1])  # (B, h, S, U)
        share = self.log_weights[:, None, None, :] - document_logits
        pooled = among + share.gather(-1, number[:, None, None, :].expand_as(among))
        gone = injected & own if self.mass == "kept" else injected
        pooled = pooled + total if self.mass == "kept" else pooled
        return torch.cat([logits.masked_fill(gone, MASKED), pooled.masked_fill(~injected, MASKED)], dim=-1)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    document_attention: ScoreInjection | AttentionMass | ChunkAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for `AttentionInterface`: fused attention, with explicit weights for selected heads only.

    Fused attention has neither soft caps nor sinks. A layer with one of them computes explicit weights in all heads.

    Args:
        module: the model's attention layer; its `layer_idx` is read.
        query: `(B, H, S, head size)`.
        key: `(B, key-value heads, T, head size)`.
        value: shaped as `key`.
        attention_mask: `(B, 1, S, T)` bool, True where a key is seen; `None` means causal.
        scaling: factor of the attention logits.
        softcap: the logits are bent to `softcap * tanh(logits / softcap)` before the mask (Gemma 2).
        s_aux: `(H,)` logits of each head's sink, a key that belongs to no document and has no value (GPT-OSS).
        document_attention: what to do with documents or chunks; `None` is stock attention alone.
        **kwargs: passed on to the fused attention.

    Returns:
        `(B, S, H, head size)` and `None`, the interface's unused attention weights.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention module of transformers has an integer here
    everything = torch.arange(query.shape[1], device=query.device)
    injected, seen = None, (key, value, attention_mask)
    if isinstance(document_attention, ScoreInjection):
        injected = document_attention.heads_of(layer)
        seen = document_attention.read_by_others(key, value, attention_mask, rows=query.shape[2])

    def log_attention(heads: Tensor, key: Tensor = key, mask: Tensor | None = attention_mask) -> Tensor:
        sinks = None if s_aux is None else s_aux[heads]
        return _log_attention(query, key, mask, heads, scaling=scaling, softcap=softcap, sinks=sinks)

    def read(log_weights: Tensor, heads: Tensor, value: Tensor = value) -> Tensor:
        values = in_float32_on_cpu(_of_heads(value, heads, query.shape[1]))
        return (log_weights.exp().to(values.dtype) @ values).transpose(1, 2).to(query.dtype)  # (B, S, h, head size)

    if softcap is None and s_aux is None:
        output, _ = fused_attention(module, query, *seen, scaling=scaling, **kwargs)
    else:
        output = read(log_attention(everything, seen[0], seen[2]), everything, seen[1])
    if isinstance(document_attention, ChunkAttention):
        output = output + document_attention.added(query, layer, scaling=scaling, softcap=softcap)
    elif isinstance(document_attention, AttentionMass):
        document_attention.record(log_attention(everything), value, layer)
    elif document_attention is not None and injected is not None:
        weights = log_attention(injected)
        if (pool := document_attention.pool) is None:
            weights = document_attention.attend(weights, layer)
        else:
            keys, values = pool.keys_values(layer, len(query))
            every = torch.ones(1, dtype=torch.bool, device=query.device)
            among = _log_attention(query, keys, every, injected, scaling=scaling, softcap=softcap, sinks=None)
            weights, value = document_attention.attend_to_pool(weights, among), torch.cat([value, values], dim=2)
        selected = read(weights, injected, value)
        output = output.index_copy(2, injected, selected.to(output.dtype))
    return output, None


def causal(rows: int, keys: Tensor) -> Tensor:
    """Causal mask `(S, T)` of the last S rows over the T keys that the last dimension of a tensor has."""
    length = keys.shape[-1]
    return torch.ones(length, length, dtype=torch.bool, device=keys.device).tril()[-rows:]


def _of_heads(states: Tensor, heads: Tensor, num_heads: int) -> Tensor:
    """Keys or values `(B, key-value heads, T, size)` that some of H heads read: `(B, h, T, size)`."""
    return states[:, heads // (num_heads // states.shape[1])]


def _log_attention(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    heads: Tensor,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Logarithms of some heads' attention, float32 (float64 in a float64 model), `MASKED` at hidden keys.

    Returns:
        `(B, h, S, T)`; a row's exponentials sum to 1, or to what the head's sink leaves.
    """
    queries, keys = map(in_float32_on_cpu, (query[:, heads], _of_heads(key, heads, query.shape[1])))
    logits = queries @ keys.transpose(2, 3)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None:
        mask = causal(logits.shape[-2], logits)
    logits = logits.masked_fill(~mask, MASKED)
    log_attention = logits.log_softmax(-1)
    if sinks is None:
        return log_attention
    kept = nn.functional.logsigmoid(logits.logsumexp(-1) - sinks[:, None])  # (B, h, S): what the sink leaves
    return log_attention + kept[..., None]


def enable_document_attention(lm: FrozenLM) -> None:
    """Switch an LLM to `document_attention`, and check on a probe that its attention can be injected.

    Raises:
        NLTError: the LLM's attention cannot be injected; the message says why and names the supported interface.
    """
    AttentionInterface.register(IMPLEMENTATION, document_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    try:
        with torch.no_grad():
            fault = _fault(lm)
    except FORWARD_ERRORS as error:
        fault = str(error) or repr(error)
    if fault is not None:
        raise NLTError(f"LLM {lm.name!r} ({type(lm.model).__name__}): {fault}. {INTERFACE_HELP}.")


def _fault(lm: FrozenLM) -> str | None:
    """Why an LLM cannot be injected, tried on twelve tokens, or `None`. It is switched to `document_attention`."""
    ids = probe_ids(lm.model, 12)
    documents = torch.tensor([[1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1]], device=lm.device)
    rows = torch.arange(12, device=lm.device)[None] >= 9
    heads = {layer: torch.arange(lm.num_heads, device=lm.device) for layer in range(lm.num_layers)}

    def states(**given: Any) -> Tensor:
        return lm.model.base_model(input_ids=ids, use_cache=False, **given).last_hidden_state[:, -3:]

    lm.model.set_attn_implementation("eager")
    stock = states()
    lm.model.set_attn_implementation(IMPLEMENTATION)
    recorder = AttentionMass(documents, rows, 1)
    states(document_attention=recorder)
    reached = {layer: mass.shape[1] for layer, mass in recorder.mass.items()}
    if reached != dict.fromkeys(range(lm.num_layers), lm.num_heads):
        found = ", ".join(f"{number} in layer {layer}" for layer, number in sorted(reached.items())) or "none"
        return (
            f"it should have {lm.num_layers} layers of {lm.num_heads} attention heads, the interface reaches {found}"
        )
    one = torch.zeros(1, 1, device=lm.device)  # the only document has share 1
    if not readings_agree(states(document_attention=ScoreInjection(one, documents, rows, heads)), stock):
        return "its attention changes with one document"
    if not readings_agree(_states_in_two_parts(lm, ids, 9), stock):
        return "it reads a prompt otherwise when documents come first, into a cache, and padded on the left"
    return None


def _states_in_two_parts(lm: FrozenLM, ids: Tensor, cut: int) -> Tensor:
    """Last hidden states of the tokens from `cut` on. They are read after the others, dropped and read again.

    Head detection does the same: a query and then the null query follow documents that were read once.
    """
    ids = nn.functional.pad(ids, (2, 0))
    mask = torch.arange(ids.shape[1], device=lm.device)[None] >= 2
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()

    def read(part: slice) -> Tensor:
        return lm.model.base_model(
            input_ids=ids[:, part],
            attention_mask=mask[:, : part.stop],
            position_ids=positions[:, part],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    first, second = slice(0, cut + 2), slice(cut + 2, ids.shape[1])
    read(first)
    read(second)
    cache.crop(first.stop - second.stop)
    return read(second)
