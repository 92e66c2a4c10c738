"""Make queries from unlabelled documents by cutting sentences out of them. No judgement is needed, because it is known
which document a sentence came from."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from nlt_trainer.data.beir import Collection, Document, Query
from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.data.sentences import LINE_END, MAX_WORDS, MIN_WORDS, count_words
from nlt_trainer.errors import NLTError


@dataclass(frozen=True)
class Needle:
    """A sentence and K documents, each without one sentence.

    Args:
        query: the sentence.
        documents: K texts; the first is the document that the sentence was cut out of, the others are the corpus'
            nearest by BM25.
    """

    query: str
    documents: tuple[str, ...]


def cut_needles(
    collection: Collection, num_needles: int, *, num_candidates: int, max_words: int, seed: int = 0
) -> list[Needle]:
    """Cut a sentence out of each of some random documents (the inverse cloze task of Lee et al., arXiv 1906.00300).

    The sentence is removed from its document, so that a head has to find the document by its subject and not by copied
    words. All documents lose a sentence. Otherwise a head that attends alike to every token would tell the right
    document by its length. The other documents share words with the sentence, so single words do not suffice either.

    Args:
        collection: only its corpus is read.
        num_needles: how many to cut; fewer if the corpus has fewer documents that can be cut.
        num_candidates: K.
        max_words: sentences come from this many words at the beginning of a document, which the LLM reads.
        seed: of the choice of documents and sentences.

    Raises:
        NLTError: fewer than K documents can be cut.
    """
    draw = random.Random(f"{seed} needles")
    cut = {
        document.id: pieces
        for document in collection.corpus.values()
        if (pieces := _cut(document, draw, max_words)) is not None
    }
    if len(cut) < num_candidates:
        raise NLTError(
            f"{collection.folder}: {len(cut)} documents have a sentence of {MIN_WORDS} to {MAX_WORDS} words and one "
            f"more, and {num_candidates} candidates are wanted; choose another head_method"
        )
    rests = replace(collection, corpus={document_id: rest for document_id, (_, rest) in cut.items()}, qrels={})
    own = draw.sample(list(cut), min(num_needles, len(cut)))
    # one candidate more, because the needle's own document may be among them
    queries = [Query(f"{i}\0", cut[i][0]) for i in own]  # no document has such an id
    mined = mine_candidates(rests, queries, num_candidates=num_candidates, seed=seed)
    needles = []
    for i, c in zip(own, mined, strict=True):
        documents = [i, *(other for other in c.document_ids if other != i)][:num_candidates]
        needles.append(Needle(c.query, tuple(rests.corpus[j].content for j in documents)))
    return needles


def _cut(document: Document, draw: random.Random, max_words: int) -> tuple[str, Document] | None:
    """A sentence of the document's text and the document without it; `None` where no sentence can be cut out."""
    sentences = [sentence for sentence in LINE_END.split(document.text) if sentence.strip()]
    read, usable = 0, []
    for sentence in sentences:
        words = count_words(sentence)
        read += words
        once = document.text.count(sentence) == 1
        if MIN_WORDS <= words <= MAX_WORDS and read <= max_words and once:
            usable.append(sentence)
    if len(sentences) < 2 or not usable:
        return None
    sentence = draw.choice(usable)
    return sentence.strip(), replace(document, text=document.text.replace(sentence, ""))
