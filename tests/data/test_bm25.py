"""BM25 against its formula and bm25s's own tokeniser; tokens and languages against what is written by hand."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from bm25s.tokenization import Tokenized

from nlt_trainer.data import beir, bm25, bm25_matrix
from nlt_trainer.data.beir import Collection, Document, Query, load_collection
from nlt_trainer.data.bm25 import (
    STOP_WORDS,
    BM25Index,
    bm25_rankings,
    language_of,
    matching,
    tokenize,
    unmatched_line,
)
from nlt_trainer.data.kept_folder import kept_folder
from nlt_trainer.evaluation.retrieval_metric import query_values
from nlt_trainer.files import cache_folder

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCES = {
    "danish": "Jeg har ikke set ham i dag, men han kommer hjem i morgen. Hvad vil du have til aftensmad?",
    "dutch": "Ik heb hem vandaag niet gezien, maar hij komt morgen naar huis en dan eten we samen.",
    "english": "I have not seen him today, but he comes home tomorrow and then we will eat together.",
    "french": "Je ne l'ai pas vu aujourd'hui, mais il rentre demain à la maison et nous mangerons ensemble.",
    "german": "Ich habe ihn heute nicht gesehen, aber er kommt morgen nach Hause, und dann essen wir zusammen.",
    "italian": "Oggi non l'ho visto, ma domani torna a casa e allora mangiamo insieme.",
    "norwegian": "Jeg har ikke sett ham i dag, men han kommer hjem i morgen. Hva vil du ha til middag nå?",
    "portuguese": "Hoje não o vi, mas amanhã ele volta para casa e então vamos comer juntos.",
    "russian": "Сегодня мы не видели друга, но завтра он вернётся домой, и тогда мы поедим вместе.",
    "spanish": "Hoy no lo he visto, pero mañana vuelve a casa y entonces comeremos juntos.",
    "swedish": "Jag har inte sett honom i dag, men han kommer hem i morgon och då äter vi tillsammans.",
    "turkish": "Bugün onu görmedim ama eve gelecek. Sonra birlikte yemek için ne istersin? Bunu daha bilmiyorum.",
}
GERMAN = ("Die Häuser der alten Stadt waren klein", "Ein Haus steht an dem Fluss.", "Der Fluss ist im Winter zu kalt.")


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    """The twelve documents and eight queries of the tiny folder."""
    return load_collection(tiny_collection_folder)


def corpus_of(*texts: str) -> dict[str, Document]:
    return {f"d{number}": Document(f"d{number}", "", text) for number, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The tides of the Sea", "tides sea"),
        ("parse_http_date", "parse_http_date parse http date"),
        ("readLines", "readlines read lines"),
        ("HTTPServer.close", "httpserver http server close"),
        ("__init__", "__init__ init"),
        ("self._x = IL-2, p53, mRNA", "self _x il p53 mrna rna"),
        ("to_be, of_lines", "to_be of_lines lines be"),
        ("größer \U0001f600", "größer"),
        ("a ! of the", ""),
    ],
)
def test_tokens_are_the_stems_of_words_and_of_parts_of_identifiers(text: str, words: str) -> None:
    """Reference: words by hand, and PyStemmer on each."""
    stop_words = {"be"} & STOP_WORDS["english"]
    expected = [word for word in words.split() if word not in stop_words]
    assert sorted(tokenize(text)) == sorted(Stemmer.Stemmer("english").stemWords(expected))


def test_plain_words_are_read_as_bm25s_reads_them(collection: Collection) -> None:
    """Reference: bm25s's own tokeniser with its English stop words and the Snowball stemmer."""
    contents = [document.content for document in collection.corpus.values()]
    stemmer = Stemmer.Stemmer("english")
    expected = bm25s.tokenize(contents, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
    assert [tokenize(content) for content in contents] == expected


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("北京大学的学生。", ["北京", "京大", "大学", "学的", "的学", "学生"]),
        ("東京タワーへ行く", ["東京", "京タ", "タワ", "ワー", "ーへ", "へ行", "行く"]),
        ("Python3で書く猫 2024年", ["python3", "で書", "書く", "く猫", "2024", "年"]),
        ("ค้นหา", ["ค้น", "นห", "หา"]),  # the tone mark stays with its consonant
        ("ພາສາລາວ", ["ພາ", "າສ", "ສາ", "າລ", "ລາ", "າວ"]),
        ("ភាសា", ["ភាសា"]),
        ("မြန်မာ", ["မြန်", "န်မ", "မာ"]),
        ("한국어를 배웁니다", ["한국", "국어", "어를", "배웁", "웁니", "니다"]),
        ("हिन्दी विकिपीडिया की किताब", ["हिन्दी", "विकिपीडिया", "की", "किताब"]),
        ("هذه اللُّغة العربية", ["هذه", "اللُّغة", "العربية"]),
    ],
)
def test_scripts_are_read_by_their_words_or_by_pairs_of_characters(text: str, tokens: list[str]) -> None:
    """Reference: Unicode's grapheme clusters, by hand."""
    assert tokenize(text) == tokens


@pytest.mark.parametrize("text", ["café naïve", "größer", "हिन्दी", "한국어를"])
def test_composed_and_decomposed_texts_are_the_same(text: str) -> None:
    """Reference: the text's other normal form."""
    assert unicodedata.normalize("NFD", text) != text or "ह" in text
    assert tokenize(unicodedata.normalize("NFD", text)) == tokenize(text) != []


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_is_that_of_the_most_stop_words(language: str) -> None:
    """Reference: a sentence of each language."""
    assert set(SENTENCES) == set(STOP_WORDS)
    assert language_of([SENTENCES[language]]) == language


@pytest.mark.parametrize(
    "texts", [["北京大学"], ["readLines(buffer, size)"], ["Nie widziałem go dzisiaj"], [SENTENCES["english"]] * 2]
)
def test_the_language_is_english_where_none_stands_out(texts: list[str]) -> None:
    """Reference: texts without stop words, and in a language that has no list."""
    assert language_of([*texts, "Haus"]) == "english"


def test_a_german_corpus_is_searched_by_german_stems() -> None:
    """Reference: by hand: the plural and the umlaut go, and stop words match nothing."""
    index = BM25Index(corpus_of(*GERMAN))
    assert index.language == "german"
    assert tokenize("Die Häuser der Städte", "german") == ["haus", "stadt"]
    assert matching(index.scores("die Häuser"), 3) == [1, 0]  # the second text is shorter
    assert not index.scores("ist das zu").any()


def test_the_language_is_that_of_documents_from_the_whole_corpus() -> None:
    """Reference: a corpus whose first two thousand documents are English, and whose other four are German."""
    texts = [SENTENCES["english"]] * 2000 + [SENTENCES["german"]] * 4000
    assert BM25Index(corpus_of(*texts)).language == "german"


def test_scores_are_those_of_lucenes_formula(collection: Collection) -> None:
    """Reference: Robertson's formula as Lucene writes it, in numpy (k1 = 1.5, b = 0.75)."""
    documents = [Counter(tokenize(document.content)) for document in collection.corpus.values()]
    lengths = np.array([document.total() for document in documents])
    expected = np.zeros(len(documents))
    query = "Why does the earth turn the tea of the earth green?"
    for token in tokenize(query):
        tf = np.array([document[token] for document in documents])
        idf = math.log(1 + (len(documents) - (tf > 0).sum() + 0.5) / ((tf > 0).sum() + 0.5))
        expected += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * lengths / lengths.mean())) * (tf > 0)
    assert (expected > 0).sum() >= 3
    np.testing.assert_allclose(BM25Index(collection.corpus).scores(query), expected, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_scores_are_those_of_bm25s_bit_by_bit(
    block: int, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the arrays that bm25s makes of the tokens of all documents at once."""
    monkeypatch.setattr(bm25_matrix, "BLOCK", block)
    texts = [*(d.content for d in collection.corpus.values()), "", "the", "tea tea tea earth", *SENTENCES.values()]
    index = BM25Index(corpus_of(*texts))
    words = {word: i for i, word in enumerate(index.matrix.vocabulary)}
    ids = [[words[token] for token in tokenize(text, index.language)] for text in texts]
    expected = bm25s.BM25()
    expected.index(Tokenized(ids=ids, vocab=words), show_progress=False)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(index.matrix, name), expected.scores[name])
        assert getattr(index.matrix, name).dtype == expected.scores[name].dtype
    query = "Why does the earth turn the tea of the earth green?"
    tokens = [token for token in tokenize(query, index.language) if token in words]
    np.testing.assert_array_equal(index.scores(query), expected.get_scores(tokens))


def test_the_index_of_a_corpus_on_disk_is_that_of_the_dict(
    tiny_collection_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the index in memory; the second time nothing is tokenised, and a damaged index is made again."""
    monkeypatch.setattr(beir, "STORED_FROM", 0)
    stored = load_collection(tiny_collection_folder).corpus
    expected = BM25Index(dict(stored))

    def never(folder: Path) -> None:
        raise AssertionError("what is kept is not made again")

    def check() -> None:
        found = BM25Index(stored)
        assert found.matrix.vocabulary == expected.matrix.vocabulary
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found.matrix, name), getattr(expected.matrix, name))
        assert list(found.document_ids) == expected.document_ids
        scores = found.scores("the earth", leave_out="d01")
        np.testing.assert_array_equal(scores, expected.scores("the earth", leave_out="d01"))

    check()
    with monkeypatch.context() as patched:
        patched.setattr(bm25, "kept_folder", lambda kind, content, make: kept_folder(kind, content, never))
        check()
    (path,) = (cache_folder() / "bm25").glob("*/data.csc.index.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"~")
    check()
    monkeypatch.setattr(bm25, "bm25_fingerprint", lambda: "another tokeniser")
    check()
    assert len(list((cache_folder() / "bm25").glob("*/"))) == 2


def test_what_is_mapped_for_writing_has_its_place_on_the_disk(tmp_path: Path) -> None:
    """Reference: the blocks of the file; writing to one without them, when the disk is full, kills the process."""
    mapped = bm25_matrix._array("data", 1 << 20, np.float32, tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_blocks * 512 >= file.stat().st_size > mapped.nbytes
    assert not mapped.any()


def test_rankings_hold_only_documents_that_share_a_token(collection: Collection) -> None:
    """Reference: the documents that name the earth; words that no document has, and stop words."""
    rankings = bm25_rankings(collection, [Query("a", "the earth"), Query("b", "zzz"), Query("c", "of the")])
    assert set(rankings["a"]) == {"d01", "d11"}
    assert list(rankings["a"].values()) == sorted(rankings["a"].values(), reverse=True)
    assert rankings["b"] == rankings["c"] == {}
    assert len(bm25_rankings(collection, [Query("a", "the earth")], top_k=1)["a"]) == 1


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_corpus_without_a_word_gives_empty_rankings(collection: Collection) -> None:
    """Reference: no document."""
    corpus = {key: replace(document, title="", text="of the !") for key, document in collection.corpus.items()}
    assert bm25_rankings(replace(collection, corpus=corpus), [Query("a", "earth")]) == {"a": {}}


def test_the_line_on_unmatched_queries_has_both_numbers() -> None:
    """Reference: the sentence."""
    assert unmatched_line(1200, 3000).startswith("1,200 of 3,000 queries share no word with the corpus, so BM25")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real collections beside the repository")
def test_scifact_has_the_figure_of_bm25s_with_a_stemmer() -> None:
    """Reference: bm25s with its own tokeniser, English stop words and the Snowball stemmer."""
    scifact = load_collection(SHARED_DATA / "scifact", splits=["test"])
    queries, stemmer = scifact.split_queries("test"), Stemmer.Stemmer("english")
    texts = [[d.content for d in scifact.corpus.values()], [query.text for query in queries]]
    documents, asked = (bm25s.tokenize(part, stopwords="en", stemmer=stemmer, show_progress=False) for part in texts)
    index = bm25s.BM25()
    index.index(documents, show_progress=False)
    ids, scores = index.retrieve(asked, corpus=np.array(list(scifact.corpus)), k=100, show_progress=False)
    plain = {q.id: dict(zip(ids[b].tolist(), scores[b].tolist(), strict=True)) for b, q in enumerate(queries)}
    means = [
        np.mean(query_values(rankings, scifact.qrels["test"])["ndcg_at_10"])
        for rankings in (bm25_rankings(scifact, queries), plain)
    ]
    assert means[0] == pytest.approx(means[1], abs=0.005)
