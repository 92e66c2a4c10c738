"""Compare head files of one LLM: do other seeds, data sets or methods find the same heads?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from nlt_trainer.files import sweep
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.report.plots import head_heat_map, save_png
from nlt_trainer.terminal import say


def compare_heads(files: Sequence[Path], *, num_heads: int, heat_maps: Path | None) -> None:
    """Print the Jaccard index of the heads for every pair of files.

    Args:
        files: two or more head files.
        num_heads: how many heads are compared: a file's own, if it has exactly so many, else its best by score.
        heat_maps: folder for a heat map of each file's scores; `None` draws none.

    Raises:
        NLTError: the files are of different LLMs.
    """
    heads = [HeadSet.load(path) for path in files]
    if heat_maps is not None:
        sweep(heat_maps)
    say(overlap_table(heads, num_heads))
    for number, (path, found) in enumerate(zip(files, heads, strict=True), start=1):
        chosen = found.chosen(num_heads)
        first = ", ".join(f"{layer}.{head}" for layer, head in chosen.heads[:8])
        say(f"{number}: {path} ({found.score_name}; {origin(found, chosen)}: {first})")
        if heat_maps is not None:
            save_png(head_heat_map(chosen, name=str(path)), heat_maps / f"{number}.png")


def origin(found: HeadSet, chosen: HeadSet) -> str:
    """Say which heads of a file are compared."""
    if chosen is found:
        return f"the file's own {len(found.heads)}, {found.settings.get('selection', 'best')}"
    return f"the best {len(chosen.heads)} by score, the file's own are {len(found.heads)}"


def overlap_table(heads: list[HeadSet], num_heads: int) -> str:
    """Markdown table of the Jaccard index for every pair of files, with the mean and the value that chance gives."""
    table = np.array([[a.jaccard(b, num_heads) for b in heads] for a in heads])
    share = min(num_heads / np.size(heads[0].scores), 1.0)
    lines = [
        f"| Jaccard index, {num_heads} heads | {' | '.join(str(n + 1) for n in range(len(heads)))} |",
        "|---" * (len(heads) + 1) + "|",
        *(f"| {n + 1} | {' | '.join(f'{value:.2f}' for value in row)} |" for n, row in enumerate(table)),
    ]
    mean = np.mean([table[i, j] for i, j in combinations(range(len(heads)), 2)])
    return "\n".join(lines) + f"\n\nmean of pairs {mean:.2f}; by chance about {share / (2 - share):.2f}\n"
