"""What the program inputs.py draws: files and command lines that look right, and what goes wrong in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
"""What Hypothesis gives a composite strategy: takes a strategy, returns a value of it."""


@dataclass(frozen=True)
class Input:
    """One input.

    Args:
        files: path in the input's folder -> content.
        words: of a command line, after `nlt`.
        seed: decides what goes wrong in its variants.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    seed: int = 0


PLAIN = [
    "The blue whale is the largest animal that ever lived on the earth.", "why does bread rise",
    "Grüner Tee wird nach der Ernte erhitzt, damit er grün bleibt.", "月は海の水を引き、潮の満ち干を起こす。",
    "A pendulum clock keeps time with a weight that swings from side to side, and it was the best for 300 years.",
]  # fmt: skip
ODD_TEXTS = [
    "", " ", "\0", "a\0b", "\x1b[2J", "\ud800", "\udcff", "\ufeff", "\u2028", "\x85", "a\tb", "a\nb", "\r", "..", "/",
    ".", "../../up", "/up", "~", "~nobody/x", "%s{}{0}", "-1", "--help", "NaN", "null", "<DOC>", "</title>", "# " * 9,
    "﷽" * 40, "\u202eabc", "e\u0301" * 30, "x" * 5000, "> " * 300, "[" * 300, "a " * 3000,
]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(PLAIN), st.sampled_from(ODD_TEXTS), st.text(st.characters(exclude_categories=()), max_size=30)
)
NUMBERS = [0, -1, 7, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
SEEDS = st.integers(0, 2**32)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


@st.composite
def json_lines(draw: Draw, rows: Sequence[dict[str, Any]]) -> bytes:
    """JSON Lines, in which a value may be of any kind or missing."""
    rows = [dict(row) for row in rows]
    change = draw(st.sampled_from(("none", "none", "value", "part", "missing")))
    if rows and change != "none":
        row = draw(st.sampled_from(rows))
        key = draw(st.sampled_from([*row]))
        if change == "missing":
            row.pop(key)
        elif change == "part" and isinstance(row[key], list):
            row[key] = [*row[key][1:], draw(VALUES)]
        else:
            row[key] = draw(VALUES)
    ascii_only = draw(st.booleans())
    return encoded("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows))


DOCUMENT_IDS, QUERY_IDS = [f"d{n}" for n in range(6)], [f"q{n}" for n in range(4)]


def rows_of(draw: Draw, ids: Sequence[str], *keys: str) -> list[dict[str, Any]]:
    """Rows with these ids and a text under each key, up to three of which are odd."""
    rows = [{"_id": one, **dict.fromkeys(keys, PLAIN[0])} for one in ids]
    for _ in range(draw(st.integers(0, 3))):
        draw(st.sampled_from(rows))[draw(st.sampled_from((*keys, *keys, "_id")))] = draw(TEXTS)
    return rows


@st.composite
def collections(draw: Draw) -> Input:
    """A BEIR folder."""
    judged = [
        f"{draw(st.sampled_from(QUERY_IDS))}\t{draw(st.sampled_from(DOCUMENT_IDS))}\t1\n"
        for _ in range(draw(st.integers(1, 4)))
    ]
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(dict.fromkeys(judged))
    files = {
        "corpus.jsonl": draw(json_lines(rows_of(draw, DOCUMENT_IDS, "title", "text"))),
        "queries.jsonl": draw(json_lines(rows_of(draw, QUERY_IDS, "text", "answer"))),
        "qrels/test.tsv": encoded(qrels),
    }
    return Input(files, seed=draw(SEEDS))


@st.composite
def trec_folders(draw: Draw) -> Input:
    """A TREC folder in one of its formats, packed or not."""
    documents, topics = rows_of(draw, DOCUMENT_IDS, "title", "text"), rows_of(draw, QUERY_IDS, "title")
    kind = draw(st.sampled_from(("tags", "columns", "json")))
    if kind == "tags":
        corpus = "".join(
            f"<DOC>\n<DOCNO> {d['_id']} </DOCNO>\n<TITLE>{d['title']}</TITLE>\n<TEXT>\n{d['text']} 3 < 5\n</TEXT>\n"
            "</DOC>\n"
            for d in documents
        )
        queries = "".join(
            f"<top>\n<num> Number: {q['_id']}\n<title> {q['title']}\n\n<desc> What?\n</top>\n" for q in topics
        )
    elif kind == "columns":
        corpus = "".join(f"{d['_id']}\t{d['text']}\n" for d in documents)
        queries = "".join(f"{q['_id']}\t{q['title']}\n" for q in topics)
    else:
        corpus, queries = ("".join(json.dumps(row) + "\n" for row in rows) for rows in (documents, topics))
    judged = "".join(f"{query} 0 {draw(st.sampled_from(DOCUMENT_IDS))} 1\n" for query in QUERY_IDS[:2])
    files = {}
    for name, content in (("corpus", corpus), ("topics.test", queries), ("qrels.test", judged)):
        ending = draw(st.sampled_from(("", ".txt", ".gz")))
        files[name + ending] = gzip.compress(encoded(content), mtime=0) if ending == ".gz" else encoded(content)
    return Input(files, seed=draw(SEEDS))


@st.composite
def runs(draw: Draw) -> Input:
    """A run of trec_eval."""
    lines = [
        f"{query} Q0 {document} {rank} {draw(st.floats())!r} tag\n"
        for query in QUERY_IDS[: draw(st.integers(1, 4))]
        for rank, document in enumerate(DOCUMENT_IDS[: draw(st.integers(1, 6))], start=1)
    ]
    return Input({"run.trec": encoded("".join(lines))}, seed=draw(SEEDS))


@st.composite
def query_files(draw: Draw) -> Input:
    """Queries that somebody typed, as text or as JSON Lines."""
    if draw(st.booleans()):
        return Input({"queries.txt": encoded("\n".join(draw(st.lists(TEXTS, max_size=5))))}, seed=draw(SEEDS))
    return Input({"queries.jsonl": draw(json_lines(rows_of(draw, QUERY_IDS, "text", "answer")))}, seed=draw(SEEDS))


@st.composite
def candidate_files(draw: Draw) -> Input:
    """What `nlt mine` writes."""
    rows = [
        {
            "query_id": query,
            "query": draw(TEXTS),
            "answer": draw(st.none() | TEXTS),
            "document_ids": DOCUMENT_IDS[:3],
            "bm25": draw(st.lists(st.floats(0, 50), min_size=3, max_size=3)),
        }
        for query in QUERY_IDS[: draw(st.integers(1, 4))]
    ]
    counted = [{**row, "queries": len(rows)} for row in rows]
    return Input({"candidates.jsonl": draw(json_lines(counted))}, seed=draw(SEEDS))


@st.composite
def gain_files(draw: Draw) -> Input:
    """What `nlt score` writes for three candidates of each of two queries."""
    gains = st.lists(st.floats(-10, 10), min_size=3, max_size=3)
    rows = [
        {
            "query_id": query,
            "document_ids": DOCUMENT_IDS[:3],
            "gain": draw(gains),
            "target_tokens": 2,
            "log_likelihood": draw(gains),
            "token_log_likelihoods": [[0.5, -1.0]] * 3,
        }
        for query in QUERY_IDS[:2]
    ]
    return Input({"gains.jsonl": draw(json_lines(rows))}, seed=draw(SEEDS))


@st.composite
def head_files(draw: Draw) -> Input:
    """What `nlt detect_heads` writes."""
    value: dict[str, Any] = {
        "heads": [[1, 2], [0, 3]],
        "scores": [draw(st.lists(st.floats(-5, 5), min_size=4, max_size=4)) for _ in range(2)],
        "llm": "llm",
        "llm_fingerprint": {"weights": "abc", "tokenizer": None},
        "settings": {"score": "signal_to_noise", "selection": "best"},
    }
    if draw(st.booleans()):
        value[draw(st.sampled_from([*value]))] = draw(VALUES)
    return Input({"heads.json": encoded(json.dumps(value, indent=draw(st.sampled_from((None, 2)))))}, seed=draw(SEEDS))
