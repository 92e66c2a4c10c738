"""What the search page shows for a query: results of one or two encoders, and the LLM's gain from each result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.scorer import likelihood_gain
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.report.comparison import LEGEND, Hit, SearchIndex, side_by_side
from nlt_trainer.report.rendering import render

LONGEST_QUERY = 10_000
"""Characters. While a longer one is cut into tokens, the searches of others would wait."""


class SearchPage:
    """The actions of the page's buttons.

    Args:
        indexes: one encoder's corpus, or two encoders' over the same one.
        scorer: loads the frozen LLM with target `query`; it is called only when gains are asked for.
        top_k: documents shown for each encoder.
    """

    def __init__(
        self, indexes: Sequence[SearchIndex], scorer: Callable[[], LikelihoodScorer], *, top_k: int = 10
    ) -> None:
        self.indexes = indexes
        self.scorer = scorer
        self.top_k = top_k

    def results(self, query: str) -> tuple[str, str, str]:
        """Search, and return the query, its results as HTML and a note on them."""
        query = query.strip().encode(errors="replace").decode()  # a browser may send half of a character
        if not query:
            return "", "", "Type a query first."
        if len(query) > LONGEST_QUERY:
            return "", "", f"The query has {len(query):,} characters, and at most {LONGEST_QUERY:,} are searched."
        number = len(self.indexes[0].documents)
        return query, self._view(query, self._hits(query), {}), f"Searched {number:,} documents."

    def gains(self, query: str) -> Iterator[tuple[str, str]]:
        """Yield the results as HTML and a note, again after each document that the LLM has read, or if it fails."""
        if not query:
            yield "", "Search first: the LLM reads the documents that are shown."
            return
        found = self._hits(query)
        yield self._view(query, found, {}), "Loading the LLM ..."
        try:
            yield from self._read(query, found)
        except NLTError as error:
            yield self._view(query, found, {}), f"The LLM cannot be asked: {error}"

    def _read(self, query: str, found: list[list[Hit]]) -> Iterator[tuple[str, str]]:
        scorer = self.scorer()
        without = scorer.log_likelihood([(None, query, None)])
        documents = {hit.document.id: hit.document.content for hits in found for hit in hits}
        gains: dict[str, float] = {}
        for number, (document_id, content) in enumerate(documents.items()):
            yield self._view(query, found, gains), f"The LLM reads document {number + 1} of {len(documents)} ..."
            gain = likelihood_gain(scorer.log_likelihood([(content, query, None)]), without)  # (1, 1)
            gains[document_id] = float(gain[0, 0])
        yield self._view(query, found, gains), f"The LLM has read {len(documents)} documents."

    def _hits(self, query: str) -> list[list[Hit]]:
        return side_by_side(query, self.indexes, top_k=self.top_k)

    def _view(self, query: str, found: list[list[Hit]], gains: Mapping[str, float]) -> str:
        columns = list(zip([index.name for index in self.indexes], found, strict=True))
        return render("app_results.html", query=query, columns=columns, gains=gains, legend=LEGEND)
