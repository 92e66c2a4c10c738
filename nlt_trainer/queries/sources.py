"""Which document a passage belongs to, and how queries of some documents are held out from training."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import zip_longest

from nlt_trainer.data.beir import Qrels
from nlt_trainer.data.questions import hash_of
from nlt_trainer.errors import NLTError

logger = logging.getLogger(__name__)

MIN_QUERIES = 20
"""With fewer queries there is nothing to train on and to decide by."""
MIN_HELD_OUT, MAX_HELD_OUT = 50, 200
"""Held-out queries: fewer do not decide anything, and more only cost time."""


def document_of(passage_id: str, title: str = "") -> str:
    """A name for a passage's document: what stands before the last `#` of its id, as in `path.md#3`.

    An id without `#` does not name its document. Passages with the same title then count as one document, and a
    passage without a title as one of its own.
    """
    return passage_id.rpartition("#")[0] or title or passage_id


def spread(passage_ids: Iterable[str], *, seed: int) -> list[str]:
    """Order passages so that any beginning is spread evenly: one of each document, then a second of each, and so on.

    Documents, and the passages of a document, come in the order of a hash of seed and id.
    """
    documents: dict[str, list[str]] = defaultdict(list)
    for passage_id in sorted(passage_ids, key=lambda i: (hash_of(f"{seed} {i}"), i)):
        documents[document_of(passage_id)].append(passage_id)
    rounds = zip_longest(*(documents[i] for i in sorted(documents, key=lambda i: (hash_of(f"{seed} {i}"), i))))
    return [passage_id for each in rounds for passage_id in each if passage_id is not None]


def split_by_source(
    sources: Mapping[str, str],
    *,
    titles: Mapping[str, str] | None = None,
    held_out_share: float = 0.15,
    held_out: int | None = None,
    seed: int = 0,
) -> dict[str, Qrels]:
    """Split queries into `train` and `held_out` so that no document has queries in both.

    A hash of seed and id chooses the documents. By share, `held_out` gets at least 50 queries and at most 200; by
    number, it gets so many, but at most a quarter of all, or 20 where that is more. It never gets more than half of
    all. The queries of a held-out document beyond that are in neither split. If all queries come from one document,
    its passages are held out instead, and a warning says so.

    Args:
        sources: query id -> id of the passage that it was made of.
        titles: passage id -> title, which tells the document of a passage whose id does not.
        held_out_share: share of the queries that is held out.
        held_out: number of the queries that are held out; `None` takes the share.
        seed: of the choice.

    Returns:
        Split -> query id -> passage id -> grade 1.

    Raises:
        NLTError: there are fewer than 20 queries, or the share is not between 0 and 1.
    """
    if not 0 < held_out_share < 1:
        raise NLTError(f"held_out_share is {held_out_share}; it must be between 0 and 1")
    if len(sources) < MIN_QUERIES:
        raise NLTError(
            f"{len(sources)} queries could be made, of {len(set(sources.values()))} usable passages, and "
            f"{MIN_QUERIES} are needed to train and to decide; give more documents or longer passages, or let the LLM "
            "write queries as well (both)"
        )
    groups: dict[str, list[str]] = defaultdict(list)
    documents = {passage: document_of(passage, (titles or {}).get(passage, "")) for passage in sources.values()}
    single = len(set(documents.values())) == 1
    for query, passage in sources.items():
        groups[passage if single else documents[passage]].append(query)
    if single:
        logger.warning(
            "all %d queries come from the one document %r, so that passages of it are held out in place of documents; "
            "what is measured on them says little about other documents",
            len(sources), next(iter(documents.values())),
        )  # fmt: skip
    if held_out is None:
        wanted = min(max(round(held_out_share * len(sources)), MIN_HELD_OUT), MAX_HELD_OUT)
    else:
        wanted = min(held_out, max(len(sources) // 4, MIN_QUERIES))
    wanted = min(wanted, len(sources) // 2)
    chosen = _choose(groups, wanted, seed=seed)
    out = [query for group in chosen for query in groups[group]]
    out = out[: MAX_HELD_OUT if held_out is None else wanted]
    train = [query for group, queries in groups.items() if group not in chosen for query in queries]
    if not train:
        raise NLTError(
            f"all {len(sources)} queries come from the passage {next(iter(groups))!r}, so none can be held out; give "
            "more documents, or cut them into passages"
        )
    return {
        split: {query: {sources[query]: 1} for query in queries}
        for split, queries in (("train", train), ("held_out", out))
    }


def _choose(groups: Mapping[str, list[str]], wanted: int, *, seed: int) -> list[str]:
    """Choose groups by hash until they have enough queries. A group that alone has far too many is passed over."""
    chosen, count = list[str](), 0
    for group in sorted(groups, key=lambda i: (hash_of(f"{seed} held out {i}"), i)):
        if count < wanted and count + len(groups[group]) <= max(2 * wanted, 1):
            chosen.append(group)
            count += len(groups[group])
    if not chosen and len(groups) > 1:
        chosen = [min(groups, key=lambda group: (len(groups[group]), group))]
    return chosen
