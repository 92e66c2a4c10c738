"""Attention of selected heads with document scores injected, through transformers' attention interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlt_trainer.errors import NLTError
from nlt_trainer.models.chunk_attention import ChunkAttention
from nlt_trainer.models.frozen_lm import FrozenLM

IMPLEMENTATION = "nlt_document_attention"

MASKED = torch.finfo(torch.float32).min
"""Attention logit of a key that a row does not see; -inf would make a row without any key NaN."""

INTERFACE_HELP = (
    "Score injection needs a decoder whose attention goes through transformers' AttentionInterface "
    "(set_attn_implementation), without soft-capped attention logits or attention sinks: "
    "the Llama, SmolLM, Qwen, Mistral, Phi-3, OLMo-2, GPT-NeoX and Granite families"
)


@dataclass(frozen=True)
class ScoreInjection:
    """Replace, in selected heads and rows, how attention is shared among documents (DREAM, arXiv 2606.24667).

    A head's softmax row p with mass m_k on document k becomes `p'_t = p_t * w_k * (sum_j m_j) / m_k` for a token t of
    document k and stays p_t elsewhere, so that it still sums to 1. In a row that sees no key of some document, as
    under a sliding window, w is normalised over the documents that it sees.

    Args:
        log_weights: `(B, K)` float32, logarithms of the documents' shares; each row's exponentials sum to 1.
        documents: `(B, T)` int64, the document (0 to K - 1) of each key, K where the key belongs to none.
        rows: `(B, S)` bool, the query rows that are injected.
        heads: layer to `(h,)` int64, the heads that are injected.
    """

    log_weights: Tensor
    documents: Tensor
    rows: Tensor
    heads: Mapping[int, Tensor]

    def heads_of(self, layer: int) -> Tensor | None:
        return self.heads.get(layer)

    def attend(self, logits: Tensor, layer: int) -> Tensor:
        """Add to masked attention logits `(B, h, S, T)` what turns their softmax into p'."""
        document_logits = log_mass(logits, self.documents, self.log_weights.shape[1])  # (B, h, S, K)
        seen = document_logits > MASKED
        log_share = document_logits.masked_fill(~seen, MASKED).log_softmax(-1)
        log_weights = self.log_weights[:, None, None, :].masked_fill(~seen, MASKED).log_softmax(-1)
        # A document's masked keys stay masked: MASKED takes in a bias of ordinary size by rounding.
        bias = torch.where(seen & self.rows[:, None, :, None], log_weights - log_share, 0.0)
        bias = nn.functional.pad(bias, (0, 1))  # column K: no document, no bias
        return logits + bias.gather(-1, self.documents[:, None, None, :].expand_as(logits))


@dataclass(frozen=True)
class AttentionMass:
    """Record the attention that every head spends on each document, averaged over chosen rows.

    Args:
        documents: `(B, T)` int64, as for `ScoreInjection`.
        rows: `(B, S)` bool, the query rows to average over.
        num_documents: K.
        mass: filled in layer by layer: layer to `(B, H, K)` float32.
    """

    documents: Tensor
    rows: Tensor
    num_documents: int
    mass: dict[int, Tensor] = field(default_factory=dict)

    def heads_of(self, layer: int) -> None:
        return None

    def record(self, logits: Tensor, value: Tensor, layer: int) -> None:
        """Take in a layer's masked attention logits `(B, H, S, T)` and values `(B, key-value heads, T, head size)`."""
        log_share = log_mass(logits, self.documents, self.num_documents) - logits.logsumexp(-1, keepdim=True)
        rows = self.rows[:, None, :, None]
        self.mass[layer] = (log_share.exp() * rows).sum(2) / rows.sum(2)  # (B, H, K)


@dataclass(frozen=True)
class ValueMass(AttentionMass):
    """Record attention times the norm of what is attended to: the sum of p_t |v_t| over each document's tokens.

    Args are those of `AttentionMass`; `mass` holds the sums, averaged over `rows`.
    """

    def record(self, logits: Tensor, value: Tensor, layer: int) -> None:
        rows = self.rows[:, None, :, None]
        share = (logits.softmax(-1) * rows).sum(2) / rows.sum(2)  # (B, H, T)
        norm = value.float().norm(dim=-1)  # (B, key-value heads, T)
        weighted = share * norm.repeat_interleave(share.shape[1] // norm.shape[1], dim=1)  # (B, H, T)
        total = weighted.new_zeros(*weighted.shape[:2], self.num_documents + 1)
        index = self.documents[:, None, :].expand_as(weighted)
        self.mass[layer] = total.scatter_add(-1, index, weighted)[..., : self.num_documents]  # (B, H, K)


def log_mass(logits: Tensor, documents: Tensor, num_documents: int) -> Tensor:
    """Log-sum-exp of attention logits over each document's keys: `(B, h, S, T)` and `(B, T)` to `(B, h, S, K)`."""
    index = documents[:, None, None, :].expand_as(logits)
    shape = (*logits.shape[:-1], num_documents + 1)
    peak = logits.new_full(shape, -torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    total = logits.new_zeros(shape).scatter_add(-1, index, (logits - peak.gather(-1, index)).exp())
    return total[..., :num_documents].log() + peak[..., :num_documents]


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    document_attention: ScoreInjection | AttentionMass | ChunkAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for `AttentionInterface`: fused attention, with explicit weights for selected heads only.

    Args:
        module: the model's attention layer; its `layer_idx` is read.
        query: `(B, H, S, head size)`.
        key: `(B, key-value heads, T, head size)`.
        value: shaped as `key`.
        attention_mask: `(B, 1, S, T)` bool, True where a key is seen; `None` means causal.
        scaling: factor of the attention logits.
        document_attention: what to do with documents or chunks; `None` is fused attention alone.
        **kwargs: passed on to the fused attention, which refuses what it cannot do (a soft cap of the logits).

    Returns:
        `(B, S, H, head size)` and `None`, the interface's unused attention weights.
    """
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention module of transformers has an integer here
    if isinstance(document_attention, ChunkAttention):
        output = output + document_attention.added(query, layer, scaling)
    elif isinstance(document_attention, AttentionMass):
        everything = torch.arange(query.shape[1], device=query.device)
        document_attention.record(_logits(query, key, attention_mask, everything, scaling), value, layer)
    elif document_attention is not None and (heads := document_attention.heads_of(layer)) is not None:
        logits = document_attention.attend(_logits(query, key, attention_mask, heads, scaling), layer)
        weights = logits.softmax(-1).to(query.dtype)  # (B, h, S, T)
        selected = weights @ repeat_kv(value, query.shape[1] // value.shape[1])[:, heads]  # (B, h, S, head size)
        output = output.index_copy(2, heads, selected.transpose(1, 2).to(output.dtype))
    return output, None


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, heads: Tensor, scaling: float) -> Tensor:
    """Masked attention logits of some heads, float32: `(B, h, S, T)`."""
    keys = repeat_kv(key, query.shape[1] // key.shape[1])[:, heads]
    logits = (query[:, heads] @ keys.transpose(2, 3)).float() * scaling
    if mask is None:
        length = logits.shape[-1]
        mask = torch.ones(length, length, dtype=torch.bool, device=logits.device).tril()[-logits.shape[-2] :]
    return logits.masked_fill(~mask, MASKED)


def enable_document_attention(lm: FrozenLM) -> None:
    """Switch an LLM to `document_attention` and verify on a probe that it does what it says.

    Raises:
        NLTError: the LLM's attention cannot be injected; the message names the supported interface.
    """
    AttentionInterface.register(IMPLEMENTATION, document_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    ids = torch.arange(12, device=lm.device)[None]
    documents = torch.tensor([[2, 0, 0, 0, 2, 1, 1, 1, 1, 2, 2, 2]], device=lm.device)
    rows = torch.arange(12, device=lm.device)[None] >= 9

    def probe(log_weights: list[float], documents: Tensor) -> Tensor:
        weights = torch.tensor([log_weights], device=lm.device)
        heads = {layer: torch.arange(lm.num_heads, device=lm.device) for layer in range(lm.num_layers)}
        injection = ScoreInjection(weights, documents, rows, heads)
        return lm.model.base_model(input_ids=ids, document_attention=injection).last_hidden_state[0, -3:].float()

    try:
        with torch.no_grad():
            stock = lm.model.base_model(input_ids=ids).last_hidden_state[0, -3:].float()
            lm.model.set_attn_implementation(IMPLEMENTATION)
            one_document = probe([0.0], (documents != 1).long())  # its share is 1 whatever its score: no change
            two_documents = probe([0.0, -30.0], documents)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise NLTError(f"LLM {lm.name!r} ({type(lm.model).__name__}): {error}. {INTERFACE_HELP}.") from error
    tolerance = 1e-3 if stock.dtype == lm.model.dtype else 5e-2
    unchanged = torch.allclose(stock, one_document, atol=tolerance * float(stock.abs().max()))
    if not unchanged or torch.equal(one_document, two_documents):
        what = "changes with one document" if not unchanged else "does not react to the scores"
        raise NLTError(f"LLM {lm.name!r} ({type(lm.model).__name__}): its attention {what}. {INTERFACE_HELP}.")
