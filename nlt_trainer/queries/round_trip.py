"""Keep the queries that lead back to their passage: the retriever finds it, and the LLM's gain prefers it."""

from __future__ import annotations

from collections.abc import Sequence

from nlt_trainer.data.beir import Document
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.lm.scoring import LikelihoodScorer

RETRIEVED, COMPARED = 20, 8
"""The source must be among so many candidates, and must have the highest gain of so many."""


def returns(
    candidates: Sequence[QueryCandidates],
    sources: Sequence[str],
    corpus: dict[str, Document],
    *,
    scorer: LikelihoodScorer,
    by_words: bool,
) -> list[bool]:
    """Whether each query leads back to the passage that it was written about.

    The source must be among the candidates, and the likelihood gain of the query must be above 0 with it and higher
    than with each of the 7 best other candidates.

    Args:
        candidates: B queries with the 20 best passages of a retriever.
        sources: B ids of passages.
        corpus: passage id -> passage.
        scorer: with the target `query`.
        by_words: whether BM25 alone found the candidates, so that those that share no word with the query are random.
    """
    found = [
        source in c.document_ids and not (by_words and c.bm25[c.document_ids.index(source)] == 0)
        for c, source in zip(candidates, sources, strict=True)
    ]
    compared = [
        (c.query, [source, *[i for i in c.document_ids if i != source][: COMPARED - 1]])
        for c, source, there in zip(candidates, sources, found, strict=True)
        if there
    ]
    if not compared:
        return found
    texts = [[corpus[i].content for i in ids] for _, ids in compared]
    gain = scorer.gain([query for query, _ in compared], texts)  # (queries that were found, 8)
    prefers = iter(((gain.argmax(1) == 0) & (gain[:, 0] > 0)).tolist())
    return [there and next(prefers) for there in found]
