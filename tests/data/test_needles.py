"""Sentences cut out of documents: what is cut, what is left, and what stands beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nlt_trainer.data.beir import Collection, Document, load_collection
from nlt_trainer.data.needles import cut_needles
from nlt_trainer.data.sentences import MAX_WORDS, MIN_WORDS
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.detection import detect_query_focused_heads
from nlt_trainer.lm.frozen_lm import FrozenLM

TOPICS = ["whale", "bee", "volcano", "tea", "bridge", "clock"]
CORPUS = {
    topic: Document(
        topic, f"About the {topic}", f"Few people saw a {topic} near here. Old {topic} stories tell of it!\nThe end."
    )
    for topic in TOPICS
}
CORPUS["short"] = Document("short", "", "One sentence alone has nothing left behind it.")
CORPUS["twice"] = Document("twice", "", "This sentence stands here more than once. " * 3)
CORPUS["long"] = Document("long", "", f"{'word ' * (MAX_WORDS + 1)}. Tiny one.")
COLLECTION = Collection("made", Path("made"), CORPUS, {}, {})


def test_a_needle_is_a_sentence_and_the_rest_of_its_document() -> None:
    """Reference: the documents' own texts; title and other sentences stay as they are, sentence ends too."""
    needles = cut_needles(COLLECTION, 100, num_candidates=3, max_words=100)
    by_topic = {topic: needle for needle in needles for topic in TOPICS if topic in needle.query}
    assert set(by_topic) == set(TOPICS)
    assert len(needles) == len(TOPICS)  # neither of the odd ones
    for topic, needle in by_topic.items():
        first, second = f"Few people saw a {topic} near here.", f"Old {topic} stories tell of it!"
        assert needle.query in (first, second)
        other = f" {second}" if needle.query == first else f"{first} "
        assert needle.documents[0] == f"About the {topic}\n{other}\nThe end."
        assert MIN_WORDS <= len(needle.query.split()) <= MAX_WORDS


def test_the_other_documents_have_lost_a_sentence_too() -> None:
    """Reference: one of the two sentences of each, so that the right document is not told by its length."""
    for needle in cut_needles(COLLECTION, 6, num_candidates=5, max_words=100):
        assert len(needle.documents) == len(set(needle.documents)) == 5
        for text in needle.documents:
            assert ("Few people" in text) != ("stories tell" in text)


def test_a_needles_document_is_never_a_wrong_one(tmp_path: Path) -> None:
    """Reference: a folder that judges a document relevant to a query of its id, so that ids are not shared."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nbee\tbee\t1\n")
    judged = Collection("made", tmp_path, CORPUS, {}, {})
    assert not judged.ids_are_shared
    needles = cut_needles(judged, 6, num_candidates=6, max_words=100)
    assert [len({*needle.documents}) for needle in needles] == [6] * 6
    assert needles == cut_needles(COLLECTION, 6, num_candidates=6, max_words=100)


def test_the_nearest_documents_stand_beside_it() -> None:
    """Reference: a corpus of two halves without a common word; BM25 fills K with the needle's own half."""
    corpus = {
        f"{word}{n}": Document(f"{word}{n}", "", f"{word} {word} {word} {word} {n}. {word} {word} {word} {word} x{n}.")
        for word in ("apple", "stone")
        for n in range(100, 104)
    }
    needles = cut_needles(Collection("made", Path("made"), corpus, {}, {}), 8, num_candidates=4, max_words=100)
    assert len(needles) == 8
    for needle in needles:
        word = needle.query.split()[0]
        assert all(word in text for text in needle.documents)


def test_the_seed_draws_documents_and_sentences() -> None:
    """Reference: equal seeds give equal needles, others differ in documents and in sentences of the same document."""
    cut = {seed: cut_needles(COLLECTION, 4, num_candidates=3, max_words=100, seed=seed) for seed in (0, 1, 2, 3, 4, 5)}
    assert cut[0] == cut_needles(COLLECTION, 4, num_candidates=3, max_words=100, seed=0)
    assert len({tuple(needle.query for needle in needles) for needles in cut.values()}) == 6
    queries = {needle.query for needles in cut.values() for needle in needles}
    assert max(sum(topic in query for query in queries) for topic in TOPICS) == 2


def test_sentences_come_from_what_is_read() -> None:
    """Reference: within the first eight words there is only the first sentence."""
    queries = [needle.query for needle in cut_needles(COLLECTION, 100, num_candidates=3, max_words=8)]
    assert queries
    assert all(query.startswith("Few people") for query in queries)


def test_a_corpus_without_sentences_is_refused(tiny_collection_folder: Path) -> None:
    """Reference: documents of one sentence each; the message names the folder and the remedy."""
    collection = load_collection(tiny_collection_folder)
    with pytest.raises(
        NLTError, match=r"collection: 0 documents have a sentence of 5 to 40 words.*another head_method"
    ):
        cut_needles(collection, 4, num_candidates=3, max_words=100)


def test_too_few_documents_are_refused() -> None:
    """Reference: six of the nine documents can be cut."""
    with pytest.raises(NLTError, match=r"made: 6 documents have a sentence .*, and 7 candidates are wanted"):
        cut_needles(COLLECTION, 4, num_candidates=7, max_words=100)


def test_positions_of_gold_are_known() -> None:
    """Reference: the first document alone has lost its sentence."""
    for needle in cut_needles(COLLECTION, 6, num_candidates=4, max_words=100):
        (topic,) = (topic for topic in TOPICS if topic in needle.query)
        assert [f"About the {topic}" in text for text in needle.documents] == [True, False, False, False]
        assert np.all([needle.query not in text for text in needle.documents])


def test_a_planted_head_is_found_by_needles(planted_lm: FrozenLM) -> None:
    """Reference: the one head of a model that attends to equal tokens: only the needle's document has its topic."""
    texts = [f"{t} {t[::-1]} {t} {t[::-1]} {t}. {t[::-1]} {t} {t[::-1]} {t} {t}." for t in TOPICS]
    corpus = {t: Document(t, "", text) for t, text in zip(TOPICS, texts, strict=True)}
    needles = cut_needles(Collection("made", Path("made"), corpus, {}, {}), 6, num_candidates=4, max_words=100)
    found = detect_query_focused_heads(
        planted_lm,
        [needle.query for needle in needles],
        documents=[needle.documents for needle in needles],
        relevant=np.tile([True, False, False, False], (6, 1)),
        max_document_tokens=64,
        num_heads=2,
    )
    assert found.heads[0] == (1, 2)
    assert found.scores[1][2] > 0.9
    assert found.scores[1][2] > found.scores[found.heads[1][0]][found.heads[1][1]] + 0.2
