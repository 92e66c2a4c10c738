"""The encoder from which training starts: what cannot be trained is refused before anything else is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.training import load_start
from nlt_trainer.errors import NLTError


@pytest.mark.parametrize("trained", [False, True])
def test_a_table_of_word_vectors_trains_only_if_it_is_updated(trained: bool, tmp_path: Path) -> None:
    """Reference: Sentence Transformers' own option, with which the table has a gradient or has none."""
    table = WordEmbeddings(WhitespaceTokenizer(["tea", "bee"]), np.eye(2, dtype=np.float32), update_embeddings=trained)
    SentenceTransformer(modules=[table, Pooling(2)], device="cpu").save_pretrained(str(tmp_path / "words"))
    model = ModelArguments(encoder=str(tmp_path / "words"), train_max_length=None if not trained else 8)
    message = "reads whole texts; leave train_max_length out" if trained else "has no weights .* set update_embeddings"
    with pytest.raises(NLTError, match=message):
        load_start(model)
    if trained:
        assert load_start(ModelArguments(encoder=model.encoder)).encode(["tea"]).tolist() == [[1.0, 0.0]]
