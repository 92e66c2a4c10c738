"""How much an LLM reads: counts of tokens, of pairs that see each other, and of targets."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlt_trainer.encoder.parts import part_sizes
from nlt_trainer.injection.chunks import ChunkGroups
from nlt_trainer.injection.document_prompts import DocumentPrompts


@dataclass(frozen=True)
class Reading:
    """What a transformer reads; its work is a sum of these.

    Args:
        tokens: positions that go through its layers.
        pairs: (position, position that it sees).
        targets: positions that are projected to the vocabulary.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    targets: float = 0.0

    @classmethod
    def text(cls, length: float, *, after: float = 0.0, targets: float = 0.0) -> Reading:
        """A text that sees itself causally and all of `after` tokens that were read before."""
        return cls(length, length * after + length * (length + 1) / 2, targets)

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.tokens + other.tokens, self.pairs + other.pairs, self.targets + other.targets)

    def __mul__(self, factor: float) -> Reading:
        return Reading(self.tokens * factor, self.pairs * factor, self.targets * factor)


def document_reading(prompts: DocumentPrompts) -> Reading:
    """The documents' part of one prompt; documents that do not see each other are each read behind its start."""
    counts = prompts.prompt_segments[0].bincount().tolist()  # of one prompt, which has no padding
    start, documents = counts[0], counts[1:]
    return sum((Reading.text(start + count) for count in documents), Reading.text(start))


def suffix_reading(prompts: DocumentPrompts) -> Reading:
    """Query and target behind the documents of one prompt, and those of other queries that it carries."""
    after, total = int(prompts.prompt_mask.sum()), Reading()
    for number in range(1 + int(prompts.suffix_queries.max())):
        own = prompts.suffix_mask & (prompts.suffix_queries == number)
        total += Reading.text(int(own.sum()), after=after, targets=int((own & prompts.suffix_target).sum()))
    return total


def chunk_reading(groups: ChunkGroups) -> Reading:
    """The chunks of one group, each alone, and how many of their tokens are predicted."""
    lengths = groups.chunk_mask[0].sum(-1).tolist()
    return sum((Reading.text(n) for n in lengths), Reading(targets=int(groups.chunk_target.sum())))


def micro_batches(rows: int, *, epochs: float, batch: int, micro_batch: int, seed: int) -> Iterator[list[int]]:
    """Rows that an LLM reads together, in an order that is drawn anew each epoch."""
    draw = random.Random(seed)
    for epoch in range(math.ceil(epochs)):
        order = draw.sample(range(rows), rows)[: math.ceil((epochs - epoch) * rows)]
        for start in range(0, len(order), batch):
            whole = order[start : start + batch]
            yield from (whole[i : i + micro_batch] for i in range(0, len(whole), micro_batch))


def tokens_read(
    calls: Iterable[Sequence[Hashable]], lengths: Mapping[Any, float], *, capacity: float
) -> tuple[float, float]:
    """Tokens of documents that are read once a call and kept from call to call, and most tokens kept at once.

    Args:
        calls: documents of each call; one that stands twice is read once.
        lengths: tokens of each document.
        capacity: tokens that are kept; the least recently used go first.
    """
    kept: OrderedDict[Hashable, float] = OrderedDict()
    read = held = most = 0.0
    for call in calls:
        known = {document for document in call if document in kept}
        for document in dict.fromkeys(call):
            if document in known:
                if document in kept:
                    kept.move_to_end(document)
                continue
            read += lengths[document]
            if capacity > 0:
                kept[document] = lengths[document]
                held += lengths[document]
            while held > capacity:
                held -= kept.popitem(last=False)[1]
            most = max(most, held)
    return read, most


def padded(
    lengths: Sequence[int], group: int, *, texts: int | None = None, tokens: int | None = None, seed: int = 0
) -> Reading:
    """What is read, padding included, where texts come in groups, drawn at random, and go through in parts.

    Args:
        lengths: of the texts, tokens.
        group: texts in a batch.
        texts: in a part of it, at most.
        tokens: in a part, at most; see `parts_by_length`.
        seed: of the draw.
    """
    order = random.Random(seed).sample(list(lengths), len(lengths))
    total = Reading()
    for start in range(0, len(order), group):
        batch = sorted(order[start : start + group], reverse=True)
        begin = 0
        for size in part_sizes(batch, texts, tokens):
            total += Reading.text(batch[begin]) * size
            begin += size
    return total
