"""The two pictures of a run: how training went, and which heads read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write_bytes
from nlt_trainer.models.heads import HeadSet

COLOURS = ("#1f5fa8", "#c8501e", "#3a7d44", "#7a4f9a")


def learning_curve(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, *, metric: str, queries: int
) -> None:
    """Draw an evaluated metric against training queries seen, one line a run.

    Args:
        logs: run name to the trainer's log; entries with `metric` are drawn against their `epoch`.
        path: PNG file.
        queries: training queries in one epoch.
        metric: key of the log, e.g. `eval_dev_ndcg_at_10`.

    Raises:
        NLTError: no run has the metric.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    drawn = 0
    for colour, (name, log) in zip(cycle(COLOURS), logs.items(), strict=False):
        points = [(entry["epoch"] * queries, entry[metric]) for entry in log if metric in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
            drawn += 1
    if not drawn:
        raise NLTError(f"no run has logged {metric!r}; set dev_split and eval_strategy in the recipe")
    axes.set(xlabel="training queries seen", ylabel="nDCG@10, dev queries", title="Learning curve")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="center right")
    _save(figure, path)


def head_heat_map(heads: HeadSet, path: str | Path, *, name: str) -> None:
    """Draw every head's score by layer and head, with the heads of the set framed.

    Args:
        heads: the set.
        path: PNG file.
        name: first line of the title, e.g. the head file.
    """
    scores = np.array(heads.scores)  # (L, H)
    figure = Figure(
        figsize=(max(4.0, 0.42 * scores.shape[1] + 2), max(4.0, 0.22 * scores.shape[0] + 1)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(scores, aspect="auto", cmap="viridis")
    for layer, head in heads.heads:
        axes.add_patch(_frame(head, layer))
    title = f"{name}\n{len(heads.heads)} {heads.settings.get('selection', 'best')} heads framed"
    axes.set(xlabel="head", ylabel="layer", title=title)
    axes.set_xticks(range(scores.shape[1]))
    axes.set_yticks(range(0, scores.shape[0], 2 if scores.shape[0] > 12 else 1))
    figure.colorbar(image, label=heads.score_name)
    _save(figure, path)


def _frame(column: int, row: int) -> Any:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ff5c33", linewidth=1.8)


def _save(figure: Figure, path: str | Path) -> None:
    """Write a PNG beside its final name, then rename it."""
    with atomic_write_bytes(path) as handle:
        figure.savefig(handle, format="png", dpi=140)
