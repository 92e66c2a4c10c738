"""Pictures of a study's results; `tables.py --plots` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlt_trainer.report.plots import COLOURS, LINES

AMOUNT = re.compile(r"(.+), (\d+) (queries|candidates|% wrong)")
"""Names of objectives that differ from another one by an amount alone."""
USUAL = {"queries": 320, "candidates": 8, "% wrong": 0}
"""The amount of the objectives whose names have none."""
AXES = {"queries": "queries drawn for training", "candidates": "candidates of a query", "% wrong": "% of wrong labels"}


def objective_chart(in_domain: pd.Series, elsewhere: pd.Series) -> Figure:
    """Draw what each objective gains on its own collection and on others, the best in domain first.

    Args:
        in_domain: gain in nDCG@10, by the objective's name.
        elsewhere: the same on collections that were not trained on.
    """
    order = in_domain.dropna().sort_values()
    figure = Figure(figsize=(6.6, 1.2 + 0.24 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(order))
    others = elsewhere.reindex(order.index)
    axes.hlines(places, others.fillna(order), order, color=LINES, linewidth=0.6, alpha=0.3)
    axes.plot(order, places, "o", color=COLOURS[0], label="the collection it was trained on")
    axes.plot(others, places, "D", color=COLOURS[1], markersize=4, label="other collections")
    axes.axvline(0, color=LINES, linewidth=0.8)
    axes.set_yticks(places, [str(name) for name in order.index])
    axes.set(xlabel="gain over the start, nDCG@10", ylim=(-0.7, len(order) - 0.3))
    axes.grid(axis="x", alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    return figure


@dataclass(frozen=True)
class Panel:
    """What a part of a picture shows.

    Args:
        objective: without an amount.
        kind: of the amount, a key of `USUAL`.
        level: another objective, whose gain is a dashed line.
    """

    objective: str
    kind: str
    level: str | None = None


def amount_chart(gains: pd.DataFrame, panels: Sequence[Panel]) -> Figure:
    """Draw gains against training queries, candidates and wrong labels, with a line for each collection.

    Args:
        gains: gain in nDCG@10, with a row for each objective and a column for each training collection.
        panels: two in each row.
    """
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(6.6, 0.4 + 2.6 * rows), layout="constrained")
    places = figure.subplots(rows, min(2, len(panels)), sharey=True, squeeze=False).flat
    colours = dict(zip(gains, cycle(COLOURS), strict=False))
    for panel, axes in zip(panels, places, strict=False):
        found = {name: amounts(gains[name], panel.objective, panel.kind) for name in gains}
        lines = {name: points for name, points in found.items() if len(points) > 1}
        for collection, points in lines.items():
            colour = colours[collection]
            axes.plot(points.index, points, marker="o", markersize=4, color=colour, label=collection)
            if panel.level:
                axes.axhline(gains.loc[panel.level, collection], color=colour, linestyle="--", linewidth=0.9)
        if panel.kind != "% wrong":
            _logarithmic(axes, sorted({amount for points in lines.values() for amount in points.index}))
        axes.axhline(0, color=LINES, linewidth=0.8)
        dashed = f"\ndashed: {panel.level}" if panel.level else ""
        axes.set(xlabel=AXES[panel.kind], title=f"{panel.objective}{dashed}")
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.25)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("gain, nDCG@10")
    for axes in places:
        axes.remove()
    labels = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {name: handle for pairs in labels for handle, name in pairs}
    figure.legend(handles.values(), handles, frameon=False, fontsize=8, loc="outside upper center", ncols=len(handles))
    return figure


def amounts(gains: pd.Series, objective: str, kind: str) -> pd.Series:
    """Gains of an objective by amount, smallest first.

    Args:
        gains: by the objective's name.
        objective: its name without an amount.
        kind: of the amount, a key of `USUAL`.
    """
    found = {USUAL[kind]: gains[objective]}
    for name, gain in gains.items():
        match = AMOUNT.fullmatch(str(name))
        if match and (match[1], match[3]) == (objective, kind):
            found[int(match[2])] = gain
    return pd.Series(found).dropna().sort_index()


def _logarithmic(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
