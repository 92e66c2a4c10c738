"""What every way of making queries returns."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.data.beir import Document, Query


@dataclass(frozen=True)
class MadeQueries:
    """Queries that were made of passages, and the passages as they are afterwards.

    Args:
        corpus: passage id -> passage, in the order of the corpus that was given; cut sentences are gone.
        queries: query id -> query; an id is `<kind>:<passage id>`.
        sources: query id -> id of the passage that it was made of.
    """

    corpus: dict[str, Document]
    queries: dict[str, Query]
    sources: dict[str, str]

    def add(self, kind: str, text: str, source: str) -> None:
        """Add a query of a passage, which has no other query of this kind."""
        query_id = f"{kind}:{source}"
        self.queries[query_id], self.sources[query_id] = Query(query_id, text), source
