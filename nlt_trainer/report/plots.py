"""The pictures of a run: curves of its training, a heat map of the LLM's heads, and the change of single queries."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write_bytes
from nlt_trainer.injection.heads import HeadSet

COLOURS = ("#1f5fa8", "#c8501e", "#3a7d44", "#7a4f9a")
LINES = "#000000"
"""Colour of axes, ticks and texts: matplotlib's own."""


def learning_curve(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], *, metric: str, label: str, from_zero: bool = True
) -> Figure:
    """Draw a logged figure against optimizer steps, with one line for each run.

    Args:
        logs: run name to the trainer's log; entries with `metric` are drawn against their `step`.
        metric: key of the log, e.g. `eval_dev_ndcg_at_10` or `loss`.
        label: of the vertical axis.
        from_zero: whether that axis begins at 0.

    Raises:
        NLTError: no run has the metric.
    """
    figure = Figure(figsize=(5.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    drawn = 0
    for colour, (name, log) in zip(cycle(COLOURS), logs.items(), strict=False):
        points = [(entry["step"], entry[metric]) for entry in log if metric in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=_plain(name))
            drawn += 1
    if not drawn:
        raise NLTError(f"no run has logged {metric!r}; set dev_split and eval_strategy in the recipe")
    axes.set(xlabel="optimizer steps", ylabel=_plain(label))
    if from_zero:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    return figure


def head_heat_map(heads: HeadSet, *, name: str) -> Figure:
    """Draw every head's score by layer and head, with the heads of the set framed.

    Args:
        heads: the set.
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
    title = f"{_plain(name)}\n{len(heads.heads)} {heads.settings.get('selection', 'best')} heads framed"
    axes.set(xlabel="head", ylabel="layer", title=title)
    axes.set_xticks(range(scores.shape[1]))
    axes.set_yticks(range(0, scores.shape[0], 2 if scores.shape[0] > 12 else 1))
    figure.colorbar(image, label=heads.score_name)
    return figure


def change_chart(differences: Sequence[float], *, label: str) -> Figure:
    """Draw the change of each query, the most improved first.

    Args:
        differences: one for each query, in any order.
        label: of the vertical axis.
    """
    values = np.sort(np.asarray(differences, np.float64))[::-1]
    figure = Figure(figsize=(5.8, 2.8), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(1, len(values) + 1)
    for colour, chosen in ((COLOURS[2], values > 0), (COLOURS[1], values < 0)):
        axes.fill_between(places, values, where=chosen, color=colour, step="mid", linewidth=1)
    axes.axhline(0, color=LINES, linewidth=0.8)
    axes.set(xlabel="queries, the most improved first", ylabel=_plain(label), ylim=(-1.05, 1.05))
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.grid(alpha=0.25)
    return figure


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a PNG beside its final name, then rename it."""
    with atomic_write_bytes(path) as handle:
        figure.savefig(handle, format="png", dpi=140)


def to_svg(figure: Figure, *, key: str) -> Markup:
    """Turn a figure into an `<svg>` element for a page.

    Its axes take the page's text colour. Its lines take the colours of the variables `--series-1` to `--series-4` if
    the page sets these.

    Args:
        figure: the figure.
        key: put before every id in the element, so that a page can hold several figures.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    root, rest = svg.split(">", 1)
    svg = re.sub(r'\s(width|height)="[^"]*"', "", root) + ">" + rest
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\1{key}-", svg).replace(LINES, "currentColor")
    for number, colour in enumerate(COLOURS, start=1):
        svg = svg.replace(colour, f"var(--series-{number}, {colour})")
    return Markup(svg)


def _plain(text: str) -> str:
    """Change a text so that matplotlib neither reads it as mathematics nor hides it from a legend."""
    return text.replace("$", r"\$").lstrip("_")


def _frame(column: int, row: int) -> Any:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ff5c33", linewidth=1.8)
