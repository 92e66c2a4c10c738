"""Query-focused retrieval heads of a frozen LLM: how they are found, kept in a JSON file and given to DREAM."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.choices import DocumentLayout, HeadScore, HeadSelection, check_choice
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import read_json, write_json
from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.attention_mass import AttentionMass
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts, check_layout
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.prompts import PromptTemplate

logger = logging.getLogger(__name__)

NULL_QUERY = "N/A"
MAKE_HEADS = "name the file that `nlt detect_heads` wrote, or write it with that stage"


@dataclass(frozen=True)
class HeadSet:
    """Heads of one LLM, best first, with the score of every head.

    Args:
        heads: `(layer, head)` pairs in the order of their selection: best first, worst first or as drawn.
        scores: L lists of H scores, higher is better.
        llm: the LLM's name in the recipe.
        llm_fingerprint: `FrozenLM.fingerprint` of the LLM in which they were found.
        settings: how they were found (score, selection, template, revision of the LLM, queries, candidates).
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
            DataError: the file is missing or malformed, its score table is incomplete or not finite, it has no head,
                a head stands twice, or a head lies outside the score table.
        """
        value = read_json(path, stage="nlt detect_heads", kind=object)
        if not isinstance(value, dict):
            raise DataError(path, f"holds a JSON {type(value).__name__} and no head file; {MAKE_HEADS}")
        if missing := [f.name for f in fields(cls) if f.name not in value]:
            raise DataError(path, f"is no head file, it has no {', no '.join(missing)}; {MAKE_HEADS}")
        try:
            heads = tuple((int(layer), int(head)) for layer, head in value["heads"])
            scores = tuple(tuple(float(s) for s in row) for row in value["scores"])
            fingerprint = {**value["llm_fingerprint"], "weights": value["llm_fingerprint"]["weights"]}
            found = cls(heads, scores, value["llm"], fingerprint, {**value["settings"]})
            if not np.isfinite(np.array(scores)).all():  # rows of different lengths are a ValueError too
                raise ValueError("a score is not finite")
            if len(set(heads)) < len(heads):
                raise ValueError("a head stands twice")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(path, f"is a damaged head file ({error!r}); {MAKE_HEADS}") from error
        if not heads:
            raise DataError(path, f"holds no head; {MAKE_HEADS}")
        for layer, head in heads:
            if not (0 <= layer < len(scores) and 0 <= head < len(scores[layer])):
                raise DataError(path, f"head [{layer}, {head}] lies outside its score table; detect the heads again")
        return found

    def check(self, lm: FrozenLM) -> None:
        """Raise `NLTError` unless the heads were found in this LLM; its dtype and adapter may differ."""
        if self.llm_fingerprint["weights"] != lm.fingerprint["weights"]:
            raise NLTError(
                f"the heads were found in LLM {self.llm!r}, not in {lm.name!r}; run `nlt detect_heads` with this LLM"
            )

    @property
    def score_name(self) -> str:
        """What the scores are, in words."""
        return f"mean {self.settings.get('score', 'score')}".replace("_", " ")

    def select(self, num_heads: int, selection: HeadSelection = "best", *, seed: int = 0) -> HeadSet:
        """Select other heads by the same scores.

        Args:
            num_heads: how many heads to select; all heads if the LLM has no more.
            selection: `best`, `worst`, or `random`, which draws from all heads whatever their scores.
            seed: seed of the random draw.

        Raises:
            NLTError: the selection is unknown, or no head would be left.
        """
        check_choice("selection", selection, HeadSelection)
        table = np.array(self.scores)  # (L, H)
        if num_heads < 1:
            raise NLTError(f"num_heads is {num_heads}; it must be at least 1")
        if num_heads > table.size:
            logger.warning("num_heads is %d, and LLM %r has %d: all are kept", num_heads, self.llm, table.size)
        orders = {
            "best": np.argsort(-table, axis=None, kind="stable"),
            "random": np.random.default_rng(seed).permutation(table.size),
            "worst": np.argsort(table, axis=None, kind="stable"),
        }
        heads = tuple(divmod(int(i), table.shape[1]) for i in orders[selection][:num_heads])
        return replace(self, heads=heads, settings={**self.settings, "selection": selection, "selection_seed": seed})

    def chosen(self, num_heads: int) -> HeadSet:
        """The set itself if it holds `num_heads` heads, however they were selected; else its best by score."""
        return self if len(self.heads) == num_heads else self.select(num_heads)

    def jaccard(self, other: HeadSet, num_heads: int) -> float:
        """Number of heads that are `chosen` in both sets, divided by the number that are chosen in at least one.

        Raises:
            NLTError: the sets belong to different LLMs.
        """
        if self.llm_fingerprint["weights"] != other.llm_fingerprint["weights"]:
            raise NLTError(f"heads of different LLMs, {self.llm!r} and {other.llm!r}, cannot be compared")
        ours, theirs = set(self.chosen(num_heads).heads), set(other.chosen(num_heads).heads)
        return len(ours & theirs) / len(ours | theirs)

    def by_layer(self, device: torch.device) -> dict[int, Tensor]:
        """Map each layer to its `(h,)` int64 head indices, as `ScoreInjection` takes them."""
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
    template: PromptTemplate | None = None,
    max_document_tokens: int = 192,
    layout: DocumentLayout = "sequential",
    score: HeadScore = "reciprocal_rank",
    num_heads: int = 16,
    batch_size: int = 2,
    seed: int = 0,
) -> HeadSet:
    """Rank all heads by how well their calibrated attention ranks the relevant document (QRHead, arXiv 2506.09944).

    A head scores a document by its mean attention from the query's tokens to the document's tokens, summed over the
    document, minus the same with the null query "N/A". These scores are compared with what is known of the documents:
    by the reciprocal rank of the best relevant document, or by the correlation with the documents' gains. Heads are
    ranked by the mean of this over all queries. Documents stand in random order, so that no head wins by position.

    Args:
        lm: the frozen LLM; it is switched to document attention.
        queries: B texts.
        documents: B lists of K documents.
        relevant: `(B, K)` bool for `reciprocal_rank`, as `relevant_by_gain` makes it; float for `correlation`. Queries
            whose documents all have the same value are left out.
        template: text around documents and query in the LLM's prompt.
        max_document_tokens: tokens that the LLM reads of a document; longer documents are cut.
        layout: whether documents see each other; choose the layout in which the heads will be used.
        score: `reciprocal_rank` or `correlation`.
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
    check_layout(layout)
    begin = time.monotonic()
    keep = np.flatnonzero(tells_apart(relevant))
    if not len(keep):
        raise NLTError(
            "no query has a relevant document (or documents of different gain), so heads cannot be ranked; "
            "give more queries or candidates"
        )
    tokens = PromptTokens(lm.tokenizer, template or PromptTemplate(), max_document_tokens=max_document_tokens)
    enable_document_attention(lm)
    orders = np.random.default_rng(seed)
    values, reader = [], DocumentReader(lm)
    for start in tqdm(range(0, len(keep), batch_size), desc="detecting heads", disable=len(keep) < 16):
        chosen = keep[start : start + batch_size]
        order = [orders.permutation(len(documents[b])) for b in chosen]
        shuffled = [[documents[b][k] for k in ks] for b, ks in zip(chosen, order, strict=True)]
        mass = calibrated_mass(reader, [queries[b] for b in chosen], documents=shuffled, tokens=tokens, layout=layout)
        values += [HEAD_SCORES[score](m, relevant[b][ks]) for m, b, ks in zip(mass, chosen, order, strict=True)]
    settings = {
        "score": score,
        "num_queries": len(keep),
        "num_candidates": len(documents[0]),
        "max_document_tokens": tokens.max_document_tokens,
        "template": tokens.template.as_dict(),
        "layout": layout,
        "llm_revision": lm.revision,
        "seed": seed,
        "lm_tokens": reader.lm_tokens,
        "seconds": round(time.monotonic() - begin, 1),
    }
    table = tuple(tuple(round(float(v), 6) for v in row) for row in np.mean(values, axis=0))
    return HeadSet((), table, lm.name, lm.fingerprint, settings).select(num_heads)


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


def reciprocal_rank(mass: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Reciprocal rank of the best relevant document under each head: `(L, H, K)` and `(K,)` to `(L, H)`."""
    best = mass[..., relevant].max(-1, keepdims=True)
    return 1.0 / (1.0 + (mass[..., ~relevant] >= best).sum(-1))


def correlation(mass: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each head's mass with the gain: `(L, H, K)` and `(K,)` to `(L, H)`.

    It is not a rank correlation, because the order of documents that add nothing is noise. It is 0 if a head gives all
    documents the same attention.
    """
    x, y = mass - mass.mean(-1, keepdims=True), gain - gain.mean()
    length = np.linalg.norm(x, axis=-1) * np.linalg.norm(y)
    return np.divide(x @ y, length, out=np.zeros_like(length), where=length > 0)


HEAD_SCORES: dict[HeadScore, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "reciprocal_rank": reciprocal_rank,
    "correlation": correlation,
}


def tells_apart(relevant: np.ndarray) -> np.ndarray:
    """Mark the queries whose documents are not all equally relevant: `(B, K)` to `(B,)` bool."""
    return relevant.min(1) < relevant.max(1)


def relevant_by_gain(gain: Iterable[Sequence[float]]) -> np.ndarray:
    """Mark the candidate of the highest gain if that gain is positive, in place of gold labels: `(B, K)` bool."""
    values = np.asarray(list(gain))
    return (values == values.max(1, keepdims=True)) & (values > 0)
