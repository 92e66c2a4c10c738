"""The blocks of recipes/use as they stand there; one whose framework is not installed is skipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from test_readme import ROOT, fenced, read

from nlt_trainer.data.beir import load_collection

SECTIONS = re.split(r"^## ", read(ROOT / "recipes" / "use" / "README.md"), flags=re.MULTILINE)
START, *BLOCKS = ("".join(code for kind, code in fenced(section) if kind == "python") for section in SECTIONS)
PROMPTS = {"query": "Which page answers this question? ", "document": "A page of an encyclopedia: "}


def nearest(encoder: SentenceTransformer, query: str, texts: dict[str, str], prompts: dict[str, str]) -> list[str]:
    """The ids of the three documents with the greatest cosine, the prompts put before the texts by hand."""
    pages = encoder.encode([prompts["document"] + text for text in texts.values()], prompt="")  # (N, D)
    question = encoder.encode(prompts["query"] + query, prompt="")  # (D,)
    cosines = pages @ question / np.linalg.norm(pages, axis=1)
    return [list(texts)[place] for place in np.argsort(-cosines)[:3]]


@pytest.mark.parametrize(
    ("block", "module", "newline"),
    [
        pytest.param(BLOCKS[0], "sentence_transformers", "\n", id="plain"),
        pytest.param(BLOCKS[1], "langchain_huggingface", " ", id="LangChain"),
        pytest.param(BLOCKS[2], "llama_index.embeddings.huggingface", "\n", id="LlamaIndex"),
        pytest.param(BLOCKS[3], "haystack_integrations.components.embedders", "\n", id="Haystack"),
    ],
)
def test_a_block_finds_the_nearest_documents(
    tiny_encoder: SentenceTransformer,
    tiny_collection_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: str,
    module: str,
    newline: str,
) -> None:
    """Reference: cosines in numpy, with the prompts that the folder names; the texts are those of training."""
    pytest.importorskip(module)
    texts = {document.id: document.content for document in load_collection(tiny_collection_folder).corpus.values()}
    tiny_encoder.prompts = {**PROMPTS}
    tiny_encoder.save_pretrained(str(tmp_path / "OUT" / "encoder"))
    tiny_collection_folder.rename(tmp_path / "mydata")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(START + block, names)
    assert names["texts"] == texts
    read_as = {name: text.replace("\n", newline) for name, text in texts.items()}
    assert names["found"] == nearest(tiny_encoder, names["query"], read_as, PROMPTS)
    for missing in ("query", "document"):
        assert names["found"] != nearest(tiny_encoder, names["query"], read_as, PROMPTS | {missing: ""})
    assert names["found"] != nearest(tiny_encoder, names["query"], read_as, PROMPTS | {"query": PROMPTS["document"]})
