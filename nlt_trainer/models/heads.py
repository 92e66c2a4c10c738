"""Query-focused retrieval heads of a frozen LLM: found, kept as JSON, handed to score injection."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import read_json, write_json
from nlt_trainer.models.attention import AttentionMass, enable_document_attention
from nlt_trainer.models.document_prompts import DocumentLayout, DocumentPrompts, build_prompts
from nlt_trainer.models.document_reader import DocumentReader
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.prompt_tokens import PromptTokens

logger = logging.getLogger(__name__)

NULL_QUERY = "N/A"


@dataclass(frozen=True)
class HeadSet:
    """Heads of one LLM, best first, with the score of every head.

    Args:
        heads: `(layer, head)` pairs, best first.
        scores: L lists of H mean reciprocal ranks of the gold document.
        llm: the LLM's name as the recipe has it.
        llm_fingerprint: `FrozenLM.fingerprint` of the LLM they were found in.
        settings: how they were found (template, queries, candidates, where gold came from).
    """

    heads: tuple[tuple[int, int], ...]
    scores: tuple[tuple[float, ...], ...]
    llm: str
    llm_fingerprint: dict[str, str | None]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a head file.

        Raises:
            DataError: missing, malformed, without a head, or with one that its own score table does not have.
        """
        value = read_json(path)
        try:
            heads = tuple((int(layer), int(head)) for layer, head in value["heads"])
            scores = tuple(tuple(float(s) for s in row) for row in value["scores"])
            fingerprint = {**value["llm_fingerprint"], "weights": value["llm_fingerprint"]["weights"]}
            found = cls(heads, scores, value["llm"], fingerprint, value["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(path, f"not a head file ({error!r}); make one with `nlt detect_heads`") from error
        if not heads:
            raise DataError(path, "holds no head; make one with `nlt detect_heads`")
        for layer, head in heads:
            if not (0 <= layer < len(scores) and 0 <= head < len(scores[layer])):
                raise DataError(path, f"head [{layer}, {head}] lies outside its score table; detect the heads again")
        return found

    def check(self, lm: FrozenLM) -> None:
        """Raise `NLTError` unless the heads were found in this LLM; another dtype or adapter is the same LLM."""
        if self.llm_fingerprint["weights"] != lm.fingerprint["weights"]:
            raise NLTError(
                f"the heads were found in LLM {self.llm!r}, not in {lm.name!r}; run `nlt detect_heads` with this LLM"
            )

    def by_layer(self, device: torch.device) -> dict[int, Tensor]:
        """Layer to `(h,)` int64 head indices, as `ScoreInjection` takes them."""
        layers: dict[int, list[int]] = {}
        for layer, head in self.heads:
            layers.setdefault(layer, []).append(head)
        return {layer: torch.tensor(sorted(heads), device=device) for layer, heads in sorted(layers.items())}


def detect_query_focused_heads(
    lm: FrozenLM,
    queries: Sequence[str],
    *,
    documents: Sequence[Sequence[str]],
    relevant: np.ndarray,
    tokens: PromptTokens,
    layout: DocumentLayout = "sequential",
    num_heads: int = 16,
    batch_size: int = 2,
    seed: int = 0,
) -> HeadSet:
    """Rank all heads by how well their calibrated attention ranks the relevant document (QRHead, arXiv 2506.09944).

    A head's score of a document is its mean attention from the query's tokens to the document's tokens, summed over
    the document, minus the same with the null query "N/A". Heads are ranked by the mean reciprocal rank that this
    score gives the best relevant document. Documents stand in random order, so that no head wins by position.

    Args:
        lm: the frozen LLM; it is switched to document attention.
        queries: B texts.
        documents: B lists of K documents.
        relevant: `(B, K)` bool; queries without a relevant document are left out.
        tokens: tokeniser of the prompt's segments.
        layout: whether documents see each other; heads are best found in the layout in which they are used.
        num_heads: how many of the best to keep.
        batch_size: queries in one forward pass.
        seed: of the documents' order.

    Raises:
        NLTError: no query has a relevant document, or the LLM's attention cannot be observed or is not finite.
    """
    begin = time.monotonic()
    keep = [b for b in range(len(queries)) if relevant[b].any()]
    if not keep:
        raise NLTError("no query has a relevant document, so heads cannot be ranked; give more queries or candidates")
    enable_document_attention(lm)
    orders = np.random.default_rng(seed)
    ranks, reader = [], DocumentReader(lm)
    for start in tqdm(range(0, len(keep), batch_size), desc="detecting heads", disable=len(keep) < 16):
        chosen = keep[start : start + batch_size]
        order = [orders.permutation(len(documents[b])) for b in chosen]
        shuffled = [[documents[b][k] for k in ks] for b, ks in zip(chosen, order, strict=True)]
        mass = calibrated_mass(reader, [queries[b] for b in chosen], documents=shuffled, tokens=tokens, layout=layout)
        ranks += [_reciprocal_rank(m, relevant[b][ks]) for m, b, ks in zip(mass, chosen, order, strict=True)]
    settings = {
        "num_queries": len(keep),
        "num_candidates": len(documents[0]),
        "max_document_tokens": tokens.max_document_tokens,
        "template": tokens.template.as_dict(),
        "layout": layout,
        "seed": seed,
        "lm_tokens": reader.lm_tokens,
        "seconds": round(time.monotonic() - begin, 1),
    }
    return _best_heads(lm, np.mean(ranks, axis=0), num_heads, settings)


def _best_heads(lm: FrozenLM, scores: np.ndarray, num_heads: int, settings: dict[str, Any]) -> HeadSet:
    """The heads of the highest scores `(L, H)`."""
    best = [divmod(int(i), scores.shape[1]) for i in np.argsort(-scores, axis=None, kind="stable")[:num_heads]]
    table = tuple(tuple(round(float(s), 6) for s in row) for row in scores)
    return HeadSet(tuple(best), table, lm.name, lm.fingerprint, settings)


def calibrated_mass(
    reader: DocumentReader,
    queries: Sequence[str],
    *,
    documents: Sequence[Sequence[str]],
    tokens: PromptTokens,
    layout: DocumentLayout = "sequential",
) -> np.ndarray:
    """Attention mass of each document from the query's tokens minus that from the null query: `(B, L, H, K)`.

    The documents are read once for both.

    Raises:
        NLTError: the attention is not finite.
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
    mass = mass_of(asked) - mass_of(null)
    if not np.isfinite(mass).all():
        raise NLTError(
            f"LLM {lm.name!r} ({lm.model.dtype}): its attention to the documents is not finite, so its heads cannot "
            "be ranked; use dtype float32 or bfloat16 (float16 overflows), or check the weights"
        )
    return mass


def _reciprocal_rank(mass: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Reciprocal rank of the best relevant document under each head: `(L, H, K)` and `(K,)` to `(L, H)`."""
    best = mass[..., relevant].max(-1, keepdims=True)
    return 1.0 / (1.0 + (mass[..., ~relevant] >= best).sum(-1))


def relevant_by_gain(gain: Iterable[Sequence[float]]) -> np.ndarray:
    """Label-free stand-in for gold: the candidate of the highest gain, where that gain is positive. `(B, K)` bool."""
    values = np.asarray(list(gain))
    return (values == values.max(1, keepdims=True)) & (values > 0)
