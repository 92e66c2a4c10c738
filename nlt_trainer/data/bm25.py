"""BM25 over a corpus, and the tokens that it reads: stemmed words, parts of identifiers, and pairs of characters.

A word loses its ending by the Snowball stemmer of the corpus's language, which `language_of` finds, and stop words of
that language are left out. An identifier counts as itself and as its parts: `readLines` gives the stems of
`readlines`, `read` and `lines`, and `parse_http_date` those of `parse_http_date`, `parse`, `http` and `date`. Text in
a script that puts no spaces between words is read as overlapping pairs of characters, as in Lucene's CJKAnalyzer.

nDCG@10 of words with parts of identifiers, and of their stems:

| collection | words | stems |
|---|---|---|
| standard library of Python 3.11, test | 0.498 | 0.515 |
| covidqa, dev | 0.694 | 0.721 |
| fairytaleqa, dev | 0.621 | 0.631 |
| scifact, test | 0.662 | 0.682 |
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from itertools import chain, islice, pairwise
from pathlib import Path

import bm25s
import numpy as np
import regex
import Stemmer
from bm25s import stopwords

from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.bm25_matrix import build, load
from nlt_trainer.data.document import Contents, Document
from nlt_trainer.data.kept_folder import kept_folder
from nlt_trainer.data.stored_corpus import StoredCorpus

logging.getLogger("bm25s").setLevel(logging.INFO)  # bm25s sets its logger to DEBUG when it is imported

STOP_WORDS = {
    "english": frozenset(stopwords.STOPWORDS_EN),
    "danish": frozenset(stopwords.STOPWORDS_DANISH),
    "dutch": frozenset(stopwords.STOPWORDS_DUTCH),
    "french": frozenset(stopwords.STOPWORDS_FRENCH),
    "german": frozenset(stopwords.STOPWORDS_GERMAN),
    "italian": frozenset(stopwords.STOPWORDS_ITALIAN),
    "norwegian": frozenset(stopwords.STOPWORDS_NORWEGIAN),
    "portuguese": frozenset(stopwords.STOPWORDS_PORTUGUESE),
    "russian": frozenset(stopwords.STOPWORDS_RUSSIAN),
    "spanish": frozenset(stopwords.STOPWORDS_SPANISH),
    "swedish": frozenset(stopwords.STOPWORDS_SWEDISH),
    "turkish": frozenset(stopwords.STOPWORDS_TURKISH),
}
"""Snowball's name of a language -> its stop words in bm25s. The first language is taken where none stands out."""
LANGUAGE_SHARE = 0.1
"""The share of a text's words that must be stop words of a language other than English; running text has a third."""
LANGUAGE_SAMPLE = 1000
"""Number of documents, evenly spaced in the corpus, in which stop words are counted."""
WORD = regex.compile(r"\w+")  # the \w of regex includes combining marks, which that of re leaves out
UNSPACED = "".join(
    rf"\p{{scx={script}}}" for script in ("Han", "Hira", "Kana", "Hang", "Bopo", "Thai", "Laoo", "Khmr", "Mymr")
)
"""Scripts without spaces between words. Korean has spaces, but particles stick to its words."""
RUN = regex.compile(rf"(?V1)(?P<unspaced>[\w&&[{UNSPACED}]]+)|[\w--[{UNSPACED}]]{{2,}}")
CHARACTER = regex.compile(r"\X")
PART_BOUNDARY = re.compile(r"_+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


PROBES = (
    (
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they",
        "this to was will with; I you we he she what which who how when where why can do from have were more than one",
        "readLines parse_http_date HTTPServer __init__ x2 a1b2c3 i18n 3.14 1,000 v1.0-beta C++ e-mail u@example.org",
        "It's naïve: Straße, STRASSE, café, cafe\u0301, \ufb01ne, İstanbul, œuvre, N\u2082, \U0001f40b don't can't",
        "北京大学的学生 東京都に行きました ｶﾀｶﾅ 猫 Python3で書く 한국어를 배웁니다",
        "ภาษาไทยไม่มีวรรค ພາສາລາວ ភាសាខ្មែរ မြန်မာဘာသာ हिन्दी भाषा العربية עברית русский",
        "read read read the line, read lines, reading a line, generously generic happily",
        "line",
    ),
    (
        "Die Häuser der größten Städte waren nicht so alt, und sie wurden im Krieg zu einem großen Teil zerstört.",
        "Ein Haus steht an dem Fluss, aber es ist nicht größer als das der Stadt.",
    ),
)
"""Two corpora, in English and in German: repeated words, and every kind of word that a tokeniser may treat apart."""


def language_of(texts: Sequence[str]) -> str:
    """Return the language whose stop words cover most words of the texts, as a key of `STOP_WORDS`.

    A stop word of several languages counts for each of them in equal shares. It is English if no other language covers
    a tenth of the words.
    """
    words = Counter[str]()
    for text in texts:
        words.update(WORD.findall(unicodedata.normalize("NFC", text).lower()))
    covered = dict.fromkeys(STOP_WORDS, 0.0)
    for word, count in words.items():
        languages = [language for language, stop_words in STOP_WORDS.items() if word in stop_words]
        for language in languages:
            covered[language] += count / len(languages)
    best = max(covered, key=lambda language: covered[language])
    return best if covered[best] >= LANGUAGE_SHARE * words.total() else next(iter(STOP_WORDS))


def tokenize(text: str, language: str = "english") -> list[str]:
    """Return the tokens of a text in their order, a word's parts after the word.

    Args:
        text: the text, which is brought into Unicode's form NFC first.
        language: a key of `STOP_WORDS`; its stop words are left out, and its stemmer cuts the endings.
    """
    return list(chain.from_iterable(map(_reader(language), WORD.findall(unicodedata.normalize("NFC", text)))))


@cache
def _reader(language: str) -> Callable[[str], list[str]]:
    """The function `_tokens` for a language, which remembers the words that it read last."""
    return lru_cache(maxsize=2**15)(partial(_tokens, language=language))


def _tokens(word: str, language: str) -> list[str]:
    """The tokens of a run of letters, digits, marks and underscores, which may change its script."""
    tokens: list[str] = []
    for run in RUN.finditer(word):
        if run["unspaced"]:
            characters = CHARACTER.findall(run[0])
            tokens += map("".join, pairwise(characters)) if characters[1:] else characters
        else:
            tokens += _stems(run[0], language)
    return tokens


def _stems(word: str, language: str) -> list[str]:
    """The stems of a word and, if it is an identifier, of its parts; single letters and stop words are left out."""
    parts = PART_BOUNDARY.split(word)
    words = [word, *(part for part in parts if len(part) > 1)] if len(parts) > 1 else [word]
    kept = [lower for lower in map(str.lower, words) if lower not in STOP_WORDS[language]]
    return Stemmer.Stemmer(language).stemWords(kept)  # one stemmer must not serve two threads at a time


class BM25Index:
    """BM25 over the contents of a corpus (k1 = 1.5, b = 0.75, Lucene's formula).

    The index of a corpus on disk is on disk too, in the user's cache, where it is found the next time.

    Args:
        corpus: document id -> document; its language, see `language_of`, is also that of the queries.
    """

    def __init__(self, corpus: Mapping[str, Document]) -> None:
        step = max(1, len(corpus) // LANGUAGE_SAMPLE)
        self.language = language_of([document.content for document in islice(corpus.values(), 0, None, step)])
        documents = (tokenize(content, self.language) for content in Contents(corpus))
        self.document_ids: Sequence[str]
        self.numbers: Mapping[str, int]
        if isinstance(corpus, StoredCorpus):
            self.document_ids, self.numbers = corpus.rows.ids, corpus.rows
            version = hashlib.blake2b(bm25_fingerprint().encode(), digest_size=8).hexdigest()
            content = f"{corpus.content}-{version}"
            self.matrix = load(kept_folder("bm25", content, lambda folder: build(documents, folder)))
        else:
            self.document_ids = list(corpus)
            self.numbers = {document_id: number for number, document_id in enumerate(self.document_ids)}
            self.matrix = build(documents)

    def scores(self, text: str, *, leave_out: str | None = None) -> np.ndarray:
        """Return a score for every document, float32 of shape `(number of documents,)`; 0 if no token is shared.

        Args:
            text: the query.
            leave_out: the id of a document that gets 0.
        """
        scores = self.matrix.scores(tokenize(text, self.language))
        if leave_out is not None:
            scores[self.numbers[leave_out]] = 0
        return scores


def matching(scores: np.ndarray, top_k: int) -> list[int]:
    """Return the indices of the `top_k` highest positive scores, best first; equal scores stay in corpus order."""
    threshold = np.partition(scores, -top_k)[-top_k] if 0 < top_k < len(scores) else 0
    found = np.flatnonzero((scores >= threshold) & (scores > 0))  # few, while sorting all scores would cost N log N
    return found[np.argsort(-scores[found], kind="stable")][:top_k].tolist()


def bm25_rankings(
    collection: Collection, queries: Sequence[Query], *, top_k: int = 100, keep_own: bool = False
) -> dict[str, dict[str, float]]:
    """Rank the corpus for each query.

    Args:
        collection: the corpus to search.
        queries: the queries; their answers are not used.
        top_k: documents for each query, or fewer if fewer share a token with it.
        keep_own: whether the document that is the query itself may be found, see `Collection.own_document`.

    Returns:
        query id -> document id -> score, best first; a run of trec_eval has the same form.
    """
    index = BM25Index(collection.corpus)
    rankings = {}
    for query in queries:
        own = None if keep_own else collection.own_document(query.id)
        scores = index.scores(query.text, leave_out=own)
        rankings[query.id] = {index.document_ids[i]: float(scores[i]) for i in matching(scores, top_k)}
    return rankings


def bm25_fingerprint() -> str:
    """Versions of the libraries, and a hash of the scores with which BM25 ranks `PROBES` for each of their texts.

    A stored result or index depends on the tokeniser and on BM25's formula, and a change of either changes these
    scores. Other fingerprints would not work as well. The text of the source file changes with every comment. A
    version number is easily forgotten when the tokeniser changes. The stored rankings would have to be made again
    before they could be hashed. If the tokeniser learns to treat another kind of word, add such a word to `PROBES`.
    What PyStemmer does to the words of other languages is known by its version.
    """
    rounded = []
    for texts in PROBES:
        corpus = {str(i): Document(str(i), "", text) for i, text in enumerate(texts)}
        queries = [Query(document.id, document.text) for document in corpus.values()]
        probes = Collection("probes", Path(), corpus, {}, {})
        for query, row in bm25_rankings(probes, queries, keep_own=True).items():
            rounded += [(query, document, round(score, 4)) for document, score in row.items()]
    scores = hashlib.blake2b(json.dumps(rounded).encode(), digest_size=8).hexdigest()
    return f"bm25 {bm25s.__version__} {Stemmer.version()} {scores}"


def unmatched_line(unmatched: int, queries: int) -> str:
    """Say how many of the queries share no word with the corpus, and what may be the reason."""
    return (
        f"{unmatched:,} of {queries:,} queries share no word with the corpus, so BM25 finds nothing for them; "
        "check that queries and documents are in one language"
    )
