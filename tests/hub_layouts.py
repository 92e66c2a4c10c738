"""Tiny data sets with the layouts that data sets of the Hub have: files, folders, columns and README.md."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from tiny import DOCUMENTS, QUERIES


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, packed where the name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(list(rows)).to_parquet(str(path))


def write_card(folder: Path, configs: Mapping[str, Mapping[str, str]]) -> None:
    """A README.md whose metadata name configuration -> split -> pattern."""
    lines = ["---", "license: mit", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", "", "# A data set", ""]))


def corpus_rows() -> list[dict[str, Any]]:
    return [{"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()]


def query_rows() -> list[dict[str, Any]]:
    return [{"_id": key, "text": text} for key, (text, _, _, _) in QUERIES.items()]


def judgement_rows(split: str) -> list[dict[str, Any]]:
    return [
        {"query-id": key, "corpus-id": gold, "score": 1.0}
        for key, (_, _, gold, part) in QUERIES.items()
        if part == split
    ]


def mteb_lines(folder: Path) -> Path:
    """As `mteb/scifact`: JSON lines, with configurations `default`, `corpus` and `queries`."""
    write_lines(folder / "corpus.jsonl", corpus_rows())
    write_lines(folder / "queries.jsonl", query_rows())
    for split in ("train", "test"):
        write_lines(folder / "qrels" / f"{split}.jsonl", judgement_rows(split))
    write_card(
        folder,
        {
            "default": {"train": "qrels/train.jsonl", "test": "qrels/test.jsonl"},
            "corpus": {"corpus": "corpus.jsonl"},
            "queries": {"queries": "queries.jsonl"},
        },
    )
    return folder


def mteb_parquet(folder: Path) -> Path:
    """As the newer data sets of mteb: Parquet, every configuration with a split `test`, ids under `id`."""
    renamed = [{"id": row.pop("_id"), **row} for row in corpus_rows()]
    write_parquet(folder / "corpus" / "test-00000-of-00002.parquet", renamed[:6])
    write_parquet(folder / "corpus" / "test-00001-of-00002.parquet", renamed[6:])
    write_parquet(
        folder / "queries" / "test-00000-of-00001.parquet", [{"id": r["_id"], "text": r["text"]} for r in query_rows()]
    )
    write_parquet(folder / "qrels" / "test-00000-of-00001.parquet", judgement_rows("test"))
    write_card(folder, {part: {"test": f"{part}/test-*"} for part in ("corpus", "queries", "qrels")})
    return folder


def plain_beir(folder: Path, qrels: Path) -> Path:
    """As the archives of BEIR: packed JSON lines without README.md; judgements in a data set of their own."""
    write_lines(folder / "corpus.jsonl.gz", corpus_rows())
    write_lines(folder / "queries.jsonl.gz", query_rows())
    qrels.mkdir(parents=True)
    (qrels / "README.md").write_text("# Judgements\n")
    for split in ("train", "dev", "test"):
        lines = [f"{r['query-id']}\t{r['corpus-id']}\t1\n" for r in judgement_rows(split)]
        (qrels / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def hotpotqa_rows(split: str) -> list[dict[str, Any]]:
    """Ten paragraphs a question on the Hub, three here: gold, and two that stand around it."""
    keys = list(DOCUMENTS)
    rows = []
    for key, (text, answer, gold, part) in QUERIES.items():
        if (part == "train") != (split == "train"):
            continue
        at = keys.index(gold)
        shown = [DOCUMENTS[keys[(at + step) % len(keys)]] for step in (1, 0, 5)]
        rows.append(
            {
                "id": f"hotpot-{key}",
                "question": text,
                "answer": answer,
                "type": "bridge",
                "supporting_facts": {"title": [DOCUMENTS[gold][0]], "sent_id": [0]},
                "context": {
                    "title": [title for title, _ in shown],
                    "sentences": [[f"{words} It is so.", " Nobody doubts it."] for _, words in shown],
                },
            }
        )
    return rows


def hotpotqa(folder: Path) -> Path:
    """As `hotpotqa/hotpot_qa`: two configurations, of which one is wanted."""
    write_parquet(folder / "distractor" / "train-00000-of-00001.parquet", hotpotqa_rows("train"))
    write_parquet(folder / "distractor" / "validation-00000-of-00001.parquet", hotpotqa_rows("validation"))
    splits = ("train", "validation")
    write_card(folder, {c: {split: f"{c}/{split}-*" for split in splits} for c in ("distractor", "fullwiki")})
    return folder


def nq_open(folder: Path) -> Path:
    """As `google-research-datasets/nq_open`: questions with lists of answers, in one configuration."""
    rows = [{"question": text, "answer": [answer, "another"]} for text, answer, _, _ in QUERIES.values()]
    write_parquet(folder / "nq_open" / "train-00000-of-00001.parquet", rows[:6])
    write_parquet(folder / "nq_open" / "validation-00000-of-00001.parquet", rows[6:])
    write_card(folder, {"nq_open": {split: f"nq_open/{split}-*" for split in ("train", "validation")}})
    return folder


def natural_questions(folder: Path) -> Path:
    """As `sentence-transformers/natural-questions`: pairs of a query and its passage, only train."""
    rows = [{"query": text, "answer": DOCUMENTS[gold][1]} for text, _, gold, _ in QUERIES.values()]
    write_parquet(folder / "pair" / "train-00000-of-00001.parquet", rows)
    write_card(folder, {"pair": {"train": "pair/train-*"}})
    return folder
