"""The report of a run, or of several in one folder: an HTML page that loads nothing, and its pictures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write, cache_folder, sweep
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.report.plots import change_chart, head_heat_map, learning_curve, save_png, to_svg
from nlt_trainer.report.query_changes import QueryChange, RunChange, RunComparer
from nlt_trainer.report.rendering import render
from nlt_trainer.run.folder import Run, changed_settings, find_runs, unique_results
from nlt_trainer.text_files import read_json


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        title: what it shows.
        svg: for the page.
        header: header of a table with the same numbers.
        rows: rows of that table.
    """

    title: str
    svg: Markup
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


class Gallery:
    """Turns figures into pictures of the page, and writes each as a PNG too.

    Args:
        folder: where the PNGs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def hang(
        self, figure: Figure, name: str, *, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> Picture:
        """Write `<folder>/<name>.png`; returns the picture."""
        path = self.folder / f"{name}.png"
        save_png(figure, path)
        self.files.append(path)
        return Picture(title, to_svg(figure, key=f"f{len(self.files)}"), header, rows)


def write_report(folder: str | Path, *, examples: int = 5, embeddings: str | Path | None = None) -> list[Path]:
    """Write the report page of a folder and its pictures as PNG; returns the files, the page first.

    Relative paths in a run's settings are used as they are, so call this in the folder where the run was started.

    Args:
        folder: output folder of a training run, or a folder with several of them.
        examples: how many of the most improved queries are shown, and of the most harmed ones.
        embeddings: folder in which embeddings are kept; `None` means the user's cache.

    Raises:
        NLTError: the folder has no run, or `examples` is negative.
        DataError: a file of a run is malformed.
    """
    if examples < 0:
        raise NLTError(f"examples is {examples}; it must be at least 0")
    folder = Path(folder)
    runs = find_runs(folder)
    sweep(folder)
    sweep(embeddings or cache_folder(), below=True)
    comparer = RunComparer(embeddings)
    parts = [comparer.compare(run) for run in runs]
    gallery = Gallery(folder)
    page = render(
        "report.html",
        title=folder.resolve().name,
        runs=runs,
        results=unique_results(runs),
        curves=_curves(parts, gallery),
        parts=[(part, _change_picture(part, gallery), *_examples(part, examples)) for part in parts],
        audits=_audits(runs),
        heads=_heads(runs, gallery),
        costs=[_cost(run) for run in runs],
        settings=_settings(runs),
    )
    with atomic_write(Run(folder).page_file) as handle:
        handle.write(page)
    return [Run(folder).page_file, *gallery.files]


def _curves(parts: Sequence[RunChange], gallery: Gallery) -> list[Picture]:
    """A curve of nDCG@10 for the runs that share their dev queries and documents, and one of each run's loss."""
    pictures: list[Picture] = []
    alike: dict[tuple[object, ...], dict[str, list[dict[str, Any]]]] = {}
    for part in parts:
        data = part.run.settings["data"]
        metric = f"eval_{data['dev_split']}_ndcg_at_10"
        start = [] if part.start_ndcg is None else [{"step": 0, metric: part.start_ndcg}]
        logs = alike.setdefault(tuple(data.get(name) for name in ("dev_split", "collection", "dev_documents")), {})
        logs[part.run.name] = start + part.run.log
    for (dev, collection, _), logs in alike.items():
        metric = f"eval_{dev}_ndcg_at_10"
        if any(_has_curve(log, metric) for log in logs.values()):
            file = f"learning_curve_{len(pictures) + 1}" if pictures else "learning_curve"
            several = f" of {Path(str(collection)).name}" if len(alike) > 1 else ""
            pictures.append(_curve(gallery, logs, metric, file, title=f"nDCG@10 on {dev} queries{several}"))
    for part in parts:
        name = part.run.name
        if _has_curve(part.run.log, "loss"):
            file = "loss" if len(parts) == 1 else f"loss_{name}"
            pictures.append(_curve(gallery, {name: part.run.log}, "loss", file, title=f"Training loss of {name}"))
    return pictures


def _has_curve(log: Sequence[dict[str, Any]], metric: str) -> bool:
    """Whether a log has a metric at two steps, without which there is nothing to draw."""
    return sum(metric in entry for entry in log) > 1


def _curve(gallery: Gallery, logs: dict[str, list[dict[str, Any]]], metric: str, file: str, *, title: str) -> Picture:
    figure = learning_curve(
        logs, metric=metric, label="loss" if metric == "loss" else "nDCG@10", from_zero=metric != "loss"
    )
    rows = [
        (name, entry["step"], f"{entry[metric]:.4f}") for name, log in logs.items() for entry in log if metric in entry
    ]
    return gallery.hang(figure, file, title=title, header=("run", "step", title), rows=rows)


def _change_picture(part: RunChange, gallery: Gallery) -> Picture | None:
    if not part.changes:
        return None
    differences = np.array([change.difference for change in part.changes])
    rows = [
        ("improved by 0.5 or more", int((differences >= 0.5).sum())),
        ("improved by less", int(((differences > 0) & (differences < 0.5)).sum())),
        ("unchanged", int((differences == 0).sum())),
        ("harmed by less than 0.5", int(((differences < 0) & (differences > -0.5)).sum())),
        ("harmed by more", int((differences <= -0.5).sum())),
    ]
    return gallery.hang(
        change_chart(differences.tolist(), label="change of nDCG@10"),
        f"queries_{part.run.name}",
        title=f"Change of nDCG@10 of each {part.split} query",
        header=("change", "queries"),
        rows=rows,
    )


def _examples(part: RunChange, number: int) -> tuple[list[QueryChange], list[QueryChange]]:
    """The most improved queries and the most harmed, the most changed first."""
    improved = [change for change in part.changes[:number] if change.difference > 0]
    harmed = [change for change in part.changes[::-1][:number] if change.difference < 0]
    return improved, harmed


def _audits(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Audit of each gains file from which a run has learnt: path -> audit."""
    found = {}
    for run in runs:
        gains = Path(run.settings["data"]["gains"])
        path = audit_file(gains)
        if path.is_file():
            found[str(gains)] = read_json(path)
    return found


def _heads(runs: Sequence[Run], gallery: Gallery) -> list[Picture]:
    """Heat maps of the heads that DREAM runs read, one for each head file."""
    files = dict.fromkeys(
        run.settings["model"]["heads"] for run in runs if "dream" in run.settings["trainer"]["objective"]
    )
    found: list[Picture] = []
    for file in filter(lambda file: Path(file).is_file(), files):
        heads = HeadSet.load(file)
        rows = [(layer, head, f"{heads.scores[layer][head]:.3f}") for layer, head in heads.heads]
        name = "heads" if len(files) == 1 else f"heads_{Path(file).stem}_{len(found) + 1}"
        figure = head_heat_map(heads, name=file)
        picture = gallery.hang(
            figure, name, title=f"Heads of {heads.llm}", header=("layer", "head", heads.score_name), rows=rows
        )
        found.append(picture)
    return found


def _cost(run: Run) -> dict[str, object]:
    """A run's row in the table of time and memory."""
    report = run.report
    training = run.logged("train_seconds")
    encoder = sum(path.stat().st_size for path in run.encoder.rglob("*") if path.is_file())
    return {
        "run": run.name,
        "queries": f"{report['queries']:,}",
        "optimizer steps": f"{report['steps']:,}",
        "seconds before training": f"{report['train_seconds'] - training:,.0f}",
        "seconds of training": f"{training:,.0f}",
        "LLM tokens before training": f"{report['lm_tokens'] - int(run.logged('lm_tokens')):,}",
        "LLM tokens in training": f"{int(run.logged('lm_tokens')):,}",
        "peak memory, GiB": _memory(report),
        "encoder on disk, MiB": f"{encoder / 2**20:,.1f}",
    }


def _memory(report: dict[str, Any]) -> str:
    parts = [f"{report['peak_memory_gib']:.1f}" if "peak_memory_gib" in report else "not recorded"]
    if "peak_accelerator_gib" in report:
        parts.append(f"{report['peak_accelerator_gib']:.1f} on the accelerator")
    return ", ".join(parts)


def _settings(runs: Sequence[Run]) -> list[tuple[str, object, list[object]]]:
    """Each setting in which a run differs from the default: its name, the default, and the value of each run."""
    changed = [changed_settings(run.settings) for run in runs]
    defaults = {key: default for found in changed for key, (default, _) in found.items()}
    return [
        (key, default, [found[key][1] if key in found else default for found in changed])
        for key, default in sorted(defaults.items())
    ]
