"""How DREAM's heads are found: those that turn to the right document, or those whose shares the loss asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.choices import DocumentLayout, TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import ScoreInjection, enable_document_attention
from nlt_trainer.injection.attention_mass import AttentionMass
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts, check_layout
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.prompts import PromptTemplate

NULL_QUERY = "N/A"

Observe = Callable[[DocumentReader, Sequence[int], Sequence[Sequence[str]]], np.ndarray]
"""What is seen of every head, `(b, L, H, K)`, for queries of these numbers and their documents in a random order."""
ScoreHeads = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]
"""The scores `(L, H)` by what was seen for each query, `(L, H, K)`, and by the relevance of its documents, `(K,)`."""


def detect_query_focused_heads(
    lm: FrozenLM,
    queries: Sequence[str],
    *,
    documents: Sequence[Sequence[str]],
    relevant: np.ndarray,
    template: PromptTemplate | None = None,
    max_document_tokens: int = 192,
    layout: DocumentLayout = "sequential",
    num_heads: int = 16,
    batch_size: int = 2,
    seed: int = 0,
) -> HeadSet:
    """Rank all heads by how well their calibrated attention ranks the relevant document (QRHead, arXiv 2506.09944).

    A head scores a document by its mean attention from the query's tokens to the document's tokens, summed over the
    document, minus the same with the null query "N/A". Heads are ranked by the mean over all queries of the reciprocal
    rank of the best relevant document by these scores. Documents stand in random order, so that no head wins by
    position.

    Args:
        lm: the frozen LLM; it is switched to document attention.
        queries: B texts.
        documents: B lists of K documents.
        relevant: `(B, K)` bool, as `relevant_by_gain` makes it. Queries whose documents all have the same value are
            left out.
        template: text around documents and query in the LLM's prompt.
        max_document_tokens: tokens that the LLM reads of a document; longer documents are cut.
        layout: whether documents see each other; choose the layout in which the heads will be used.
        num_heads: how many of the best heads to keep.
        batch_size: queries in one forward pass.
        seed: seed of the documents' order.

    Raises:
        NLTError: every query's documents all have the same value in `relevant`, the layout is unknown, or the LLM's
            attention cannot be observed or is not finite.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        gain = LikelihoodScorer(lm, target="query").gain(queries, documents)
        heads = detect_query_focused_heads(lm, queries, documents=documents, relevant=relevant_by_gain(gain))
        ```
    """
    tokens = PromptTokens(lm.tokenizer, template or PromptTemplate(), max_document_tokens=max_document_tokens)

    def observe(reader: DocumentReader, rows: Sequence[int], texts: Sequence[Sequence[str]]) -> np.ndarray:
        asked = [queries[b] for b in rows]
        return calibrated_mass(reader, asked, documents=texts, tokens=tokens, layout=layout)

    def mean_score(found: Sequence[np.ndarray], relevant: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([reciprocal_rank(*pair) for pair in zip(found, relevant, strict=True)], axis=0)

    detect = _Detection(documents, relevant, tokens, layout, batch_size, seed)
    return detect(lm, observe, mean_score, name="reciprocal_rank").select(num_heads)


def detect_heads_by_gradient(
    lm: FrozenLM,
    queries: Sequence[str],
    *,
    documents: Sequence[Sequence[str]],
    relevant: np.ndarray,
    target: TargetKind,
    answers: Sequence[str | None] | None = None,
    template: PromptTemplate | None = None,
    max_document_tokens: int = 192,
    layout: DocumentLayout = "independent",
    num_heads: int = 16,
    batch_size: int = 4,
    seed: int = 0,
) -> HeadSet:
    """Rank all heads by how surely the LLM's loss asks each of them for the relevant document.

    All heads are injected with equal shares, and each has shares of its own. The gradient of the target's loss then
    says for every head by itself which documents it should attend to more. Heads are ranked by the push on relevant
    documents less that on the others, its mean over queries divided by its standard deviation. These are the heads
    through which DREAM's loss can teach. A head that finds the right document but does nothing with it, or whose work
    is not needed for the target, is left out.

    Args:
        lm: the frozen LLM; it is switched to document attention.
        queries: B texts.
        documents: B lists of K documents.
        relevant: `(B, K)` bool, as `relevant_by_gain` makes it. Queries whose documents all have the same value are
            left out.
        target: what the LLM has to predict, as in training.
        answers: B texts; needed for the targets `answer` and `joint`.
        template: text around documents, query and answer in the LLM's prompt.
        max_document_tokens: tokens that the LLM reads of a document; longer documents are cut.
        layout: whether documents see each other; that of training.
        num_heads: how many of the best heads to keep.
        batch_size: queries in one pass.
        seed: seed of the documents' order.

    Raises:
        NLTError: every query's documents all have the same value in `relevant`, the layout is unknown, or the LLM's
            attention cannot be injected or its gradient is not finite.
    """
    tokens = PromptTokens(lm.tokenizer, template or PromptTemplate(), max_document_tokens=max_document_tokens)

    def observe(reader: DocumentReader, rows: Sequence[int], texts: Sequence[Sequence[str]]) -> np.ndarray:
        prompts = build_prompts(
            tokens,
            [queries[b] for b in rows],
            texts,
            target=target,
            context_length=lm.context_length,
            layout=layout,
            answers=None if answers is None else [answers[b] for b in rows],
        )
        return push_of_heads(reader, prompts.to(lm.device), num_documents=len(texts[0]))

    detect = _Detection(documents, relevant, tokens, layout, batch_size, seed)
    found = detect(lm, observe, signal_to_noise, name="signal_to_noise")
    return replace(found, settings={**found.settings, "target": target}).select(num_heads)


@dataclass(frozen=True)
class _Detection:
    """The queries on which heads are observed, and how.

    Args: those of `detect_query_focused_heads`.
    """

    documents: Sequence[Sequence[str]]
    relevant: np.ndarray
    tokens: PromptTokens
    layout: DocumentLayout
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_layout(self.layout)

    def __call__(self, lm: FrozenLM, observe: Observe, score_of: ScoreHeads, *, name: str) -> HeadSet:
        """Observe all heads on the queries whose documents differ, and score them; none is selected yet."""
        begin = time.monotonic()
        keep = np.flatnonzero(tells_apart(self.relevant))
        if not len(keep):
            raise NLTError(
                "no query has a relevant document (or documents of different gain), so heads cannot be ranked; "
                "give more queries or candidates"
            )
        enable_document_attention(lm)
        orders = np.random.default_rng(self.seed)
        found: list[np.ndarray] = []
        known: list[np.ndarray] = []
        reader = DocumentReader(lm)
        for start in tqdm(range(0, len(keep), self.batch_size), desc="detecting heads", disable=len(keep) < 16):
            chosen = keep[start : start + self.batch_size]
            order = [orders.permutation(len(self.documents[b])) for b in chosen]
            shuffled = [[self.documents[b][k] for k in ks] for b, ks in zip(chosen, order, strict=True)]
            seen = observe(reader, chosen.tolist(), shuffled)
            if not np.isfinite(seen).all():
                raise NLTError(
                    f"LLM {lm.name!r} ({lm.model.dtype}): its attention to the documents is not finite, so its heads "
                    "cannot be ranked; use dtype float32 or bfloat16 (float16 overflows), or check the weights"
                )
            found += [*seen]
            known += [self.relevant[b][ks] for b, ks in zip(chosen, order, strict=True)]
        settings = {
            "score": name,
            "num_queries": len(keep),
            "num_candidates": len(self.documents[0]),
            "max_document_tokens": self.tokens.max_document_tokens,
            "template": self.tokens.template.as_dict(),
            "layout": self.layout,
            "llm_revision": lm.revision,
            "seed": self.seed,
            "lm_tokens": reader.lm_tokens,
            "seconds": round(time.monotonic() - begin, 1),
        }
        table = tuple(tuple(round(float(v), 6) for v in row) for row in score_of(found, known))
        return HeadSet((), table, lm.name, lm.fingerprint, settings)


def calibrated_mass(
    reader: DocumentReader,
    queries: Sequence[str],
    *,
    documents: Sequence[Sequence[str]],
    tokens: PromptTokens,
    layout: DocumentLayout = "sequential",
) -> np.ndarray:
    """Attention mass on each document from the query's tokens, minus that from the null query: `(B, L, H, K)`.

    The LLM reads the documents once for both queries.
    """
    lm = reader.lm

    def prompts_of(texts: Sequence[str]) -> DocumentPrompts:
        prompts = build_prompts(
            tokens, texts, documents, target="query", context_length=lm.context_length, layout=layout
        )
        return prompts.to(lm.device)

    def mass_of(prompts: DocumentPrompts) -> np.ndarray:
        k = len(documents[0])
        recorder = AttentionMass(prompts.key_documents(k), prompts.suffix_target, k)
        with torch.no_grad():
            reader.read_suffix(prompts, cache, recorder)
        cache.crop(-prompts.suffix_ids.shape[1])
        return torch.stack([recorder.mass[layer] for layer in range(lm.num_layers)], dim=1).cpu().numpy()

    asked, null = prompts_of(queries), prompts_of([NULL_QUERY] * len(queries))
    cache = reader.read_documents(asked)
    return mass_of(asked) - mass_of(null)


@dataclass(frozen=True)
class HeadwiseInjection(ScoreInjection):
    """Score injection in which every head has shares of its own.

    Args (the others are those of `ScoreInjection`):
        shares: layer to `(B, h, K)`, logarithms of the shares of its heads.
    """

    shares: Mapping[int, Tensor] = field(default_factory=dict)

    def log_weights_of(self, layer: int) -> Tensor:
        return self.shares[layer][:, :, None, :]


def push_of_heads(reader: DocumentReader, prompts: DocumentPrompts, *, num_documents: int) -> np.ndarray:
    """How the loss pushes the logarithms of every head's shares, at equal shares: `(B, L, H, K)`, nats per token.

    Args:
        reader: reads the prompts.
        prompts: B prompts of K documents, on the LLM's device.
        num_documents: K.
    """
    lm, (b, k) = reader.lm, (len(prompts), num_documents)
    equal = torch.full((b, k), 1 / k, device=lm.device).log()
    heads = {layer: torch.arange(lm.num_heads, device=lm.device) for layer in range(lm.num_layers)}
    shares = {layer: equal[:, None].repeat(1, lm.num_heads, 1).requires_grad_() for layer in heads}
    cache = reader.read_documents(prompts)
    injection = HeadwiseInjection(equal, prompts.key_documents(k), prompts.suffix_mask, heads, shares=shares)
    hidden = reader.read_suffix(prompts, cache, injection)
    loss = reader.target_losses(hidden, prompts).sum()
    pushes = torch.autograd.grad(loss, [*shares.values()])
    return -torch.stack(pushes, dim=1).cpu().numpy()


def reciprocal_rank(mass: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Reciprocal rank of the best relevant document under each head: `(L, H, K)` and `(K,)` to `(L, H)`."""
    best = mass[..., relevant].max(-1, keepdims=True)
    return 1.0 / (1.0 + (mass[..., ~relevant] >= best).sum(-1))


def signal(push: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Mean push on relevant documents less that on the others: `(..., K)` and `(K,)` bool to `(...)`."""
    return push[..., relevant].mean(-1) - push[..., ~relevant].mean(-1)


def signal_to_noise(pushes: Sequence[np.ndarray], relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over queries of the signal, over its standard deviation; 0 where that is 0, the signal itself of one query.

    Args:
        pushes: B arrays `(..., K)`.
        relevant: B arrays `(K,)` bool.
    """
    signals = np.array([signal(push, known) for push, known in zip(pushes, relevant, strict=True)])
    spread = signals.std(0) if len(signals) > 1 else np.ones_like(signals[0])
    return np.divide(signals.mean(0), spread, out=np.zeros_like(spread), where=spread > 0)


def tells_apart(relevant: np.ndarray) -> np.ndarray:
    """Mark the queries whose documents are not all equally relevant: `(B, K)` to `(B,)` bool."""
    return relevant.min(1) < relevant.max(1)


def relevant_by_gain(gain: Iterable[Sequence[float]]) -> np.ndarray:
    """Mark the candidate of the highest gain if that gain is positive, in place of gold labels: `(B, K)` bool."""
    values = np.asarray(list(gain))
    return (values == values.max(1, keepdims=True)) & (values > 0)
