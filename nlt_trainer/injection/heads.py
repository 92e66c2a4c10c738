"""Attention heads of a frozen LLM, with the score of every head: kept in a JSON file and given to DREAM."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlt_trainer.choices import HeadSelection, check_choice
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.text_files import read_json, write_json

logger = logging.getLogger(__name__)

MAKE_HEADS = "name the file that `nlt detect_heads` wrote, or write it with that stage"


@dataclass(frozen=True)
class HeadSet:
    """Heads of one LLM, best first, with the score of every head.

    Args:
        heads: `(layer, head)` pairs in the order of their selection: best first, worst first or as drawn.
        scores: L lists of H scores, higher is better.
        llm: the LLM's name in the recipe.
        llm_fingerprint: `FrozenLM.fingerprint` of the LLM in which they were found.
        settings: how they were found (score, selection, template, revision of the LLM, queries, candidates).
    """

    heads: tuple[tuple[int, int], ...]
    scores: tuple[tuple[float, ...], ...]
    llm: str
    llm_fingerprint: dict[str, str | None]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> None:
        write_json(path, asdict(self), checksum=True)

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a head file.

        Raises:
            DataError: the file is missing or malformed, its score table is incomplete or not finite, it has no head,
                a head stands twice, or a head lies outside the score table.
        """
        value = read_json(path, stage="nlt detect_heads", kind=object)
        if not isinstance(value, dict):
            raise DataError(path, f"holds a JSON {type(value).__name__} and no head file; {MAKE_HEADS}")
        if missing := [f.name for f in fields(cls) if f.name not in value]:
            raise DataError(path, f"is no head file, it has no {', no '.join(missing)}; {MAKE_HEADS}")
        try:
            heads = tuple((int(layer), int(head)) for layer, head in value["heads"])
            scores = tuple(tuple(float(s) for s in row) for row in value["scores"])
            fingerprint = {**value["llm_fingerprint"], "weights": value["llm_fingerprint"]["weights"]}
            found = cls(heads, scores, value["llm"], fingerprint, {**value["settings"]})
            if not np.isfinite(np.array(scores)).all():  # rows of different lengths are a ValueError too
                raise ValueError("a score is not finite")
            if len(set(heads)) < len(heads):
                raise ValueError("a head stands twice")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(path, f"is a damaged head file ({error!r}); {MAKE_HEADS}") from error
        if not heads:
            raise DataError(path, f"holds no head; {MAKE_HEADS}")
        for layer, head in heads:
            if not (0 <= layer < len(scores) and 0 <= head < len(scores[layer])):
                raise DataError(path, f"head [{layer}, {head}] lies outside its score table; detect the heads again")
        return found

    def check(self, lm: FrozenLM) -> None:
        """Raise `NLTError` unless the heads were found in this LLM; its dtype and adapter may differ."""
        if self.llm_fingerprint["weights"] != lm.fingerprint["weights"]:
            raise NLTError(
                f"the heads were found in LLM {self.llm!r}, not in {lm.name!r}; run `nlt detect_heads` with this LLM"
            )

    @property
    def score_name(self) -> str:
        """What the scores are, in words."""
        name = str(self.settings.get("score", "score")).replace("_", " ")
        return name if name == "signal to noise" else f"mean {name}"

    def select(self, num_heads: int, selection: HeadSelection = "best", *, seed: int = 0) -> HeadSet:
        """Select other heads by the same scores.

        Args:
            num_heads: how many heads to select; all heads if the LLM has no more.
            selection: `best`, `worst`, or `random`, which draws from all heads whatever their scores.
            seed: seed of the random draw.

        Raises:
            NLTError: the selection is unknown, or no head would be left.
        """
        check_choice("selection", selection, HeadSelection)
        table = np.array(self.scores)  # (L, H)
        if num_heads < 1:
            raise NLTError(f"num_heads is {num_heads}; it must be at least 1")
        if num_heads > table.size:
            logger.warning("num_heads is %d, and LLM %r has %d: all are kept", num_heads, self.llm, table.size)
        orders = {
            "best": np.argsort(-table, axis=None, kind="stable"),
            "random": np.random.default_rng(seed).permutation(table.size),
            "worst": np.argsort(table, axis=None, kind="stable"),
        }
        heads = tuple(divmod(int(i), table.shape[1]) for i in orders[selection][:num_heads])
        return replace(self, heads=heads, settings={**self.settings, "selection": selection, "selection_seed": seed})

    def chosen(self, num_heads: int) -> HeadSet:
        """The set itself if it holds `num_heads` heads, however they were selected; else its best by score."""
        return self if len(self.heads) == num_heads else self.select(num_heads)

    def jaccard(self, other: HeadSet, num_heads: int) -> float:
        """Number of heads that are `chosen` in both sets, divided by the number that are chosen in at least one.

        Raises:
            NLTError: the sets belong to different LLMs.
        """
        if self.llm_fingerprint["weights"] != other.llm_fingerprint["weights"]:
            raise NLTError(f"heads of different LLMs, {self.llm!r} and {other.llm!r}, cannot be compared")
        ours, theirs = set(self.chosen(num_heads).heads), set(other.chosen(num_heads).heads)
        return len(ours & theirs) / len(ours | theirs)

    def by_layer(self, device: torch.device) -> dict[int, Tensor]:
        """Map each layer to its `(h,)` int64 head indices, as `ScoreInjection` takes them."""
        layers: dict[int, list[int]] = {}
        for layer, head in self.heads:
            layers.setdefault(layer, []).append(head)
        return {layer: torch.tensor(sorted(heads), device=device) for layer, heads in sorted(layers.items())}
