"""Collect the scores of systems on tasks, compare the systems, and write both as tables and files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nlt_trainer.data.known_queries import count_known
from nlt_trainer.evaluation.folder_task import METRICS
from nlt_trainer.evaluation.significance import bootstrap_interval, randomisation_test, weighted_mean
from nlt_trainer.evaluation.systems import System
from nlt_trainer.evaluation.task_scores import TaskScores
from nlt_trainer.evaluation.tasks import TaskList
from nlt_trainer.files import atomic_write
from nlt_trainer.run.folder import Run
from nlt_trainer.run.results import Result, results_table, table_row
from nlt_trainer.text_files import write_json, write_jsonl


@dataclass(frozen=True)
class Comparison:
    """One system against another on one task or mean of tasks, by nDCG@10.

    Args:
        collection: as in `Result`.
        split: as in `Result`.
        system: name of the one.
        against: name of the other.
        difference: the one's nDCG@10 minus the other's.
        low: lower bound of the difference's 95 % paired bootstrap interval; `None` where a part has a single query.
        high: its upper bound.
        p: two-sided p-value of the paired randomisation test, not corrected for the number of comparisons.
        better: queries whose nDCG@10 is higher with the one.
        worse: queries whose nDCG@10 is lower with it.
        queries: all queries.
    """

    collection: str
    split: str
    system: str
    against: str
    difference: float
    low: float | None
    high: float | None
    p: float
    better: int
    worse: int
    queries: int


@dataclass(frozen=True)
class Evaluation:
    """The scores of all systems on all tasks.

    Args:
        tasks: what was evaluated on.
        systems: the rows of each task, in order.
        scores: name of a system and title of a task -> what was found.
        against: name of the system that the encoders are compared with; `None` where there is none.
    """

    tasks: TaskList
    systems: Sequence[System]
    scores: Mapping[tuple[str, str], TaskScores]
    against: str | None

    def titles(self) -> Iterator[tuple[str, str, str]]:
        """Title, collection and split of each task, then of each mean."""
        for entry in self.tasks.tasks:
            yield entry.title, entry.collection, entry.split
        for name, members in self.tasks.averages.items():
            yield name, name, f"mean of {len(members)}"

    def values(self, system: str, title: str, metric: str) -> tuple[list[np.ndarray], list[float]]:
        """Values of the queries of each part of a task or mean, and the parts' weights, which sum to 1."""
        if title in self.tasks.averages:
            members = self.tasks.averages[title]
            found = [self.values(system, member, metric) for member in members]
            return [g for groups, _ in found for g in groups], [w / len(members) for _, ws in found for w in ws]
        parts = self.scores[system, title].values
        return [np.array(part[metric]) for part in parts.values()], [1 / len(parts)] * len(parts)

    def rows(self) -> list[Result]:
        """The table's rows, those of one task together."""
        return [self._row(system, *title) for title in self.titles() for system in self.systems]

    def _row(self, system: System, title: str, collection: str, split: str) -> Result:
        low, high = bootstrap_interval(*self.values(system.name, title, METRICS[0])) or (None, None)
        asked = next((entry.query_texts for entry in self.tasks.tasks if entry.title == title), [])
        known = system.trained_queries
        ndcg, mrr, recall = (weighted_mean(*self.values(system.name, title, name)) for name in METRICS)
        return Result(
            system.name,
            ndcg,
            mrr,
            recall,
            train_seconds=system.train_seconds,
            lm_tokens=system.lm_tokens,
            seed=system.seed,
            collection=collection,
            split=split,
            ndcg_at_10_low=low,
            ndcg_at_10_high=high,
            queries=len(asked) if known else 0,
            trained_on=None if known is None else count_known(asked, known),
        )

    def comparisons(self) -> list[Comparison]:
        """Compare every other system with `against`, on each task and mean."""
        others = [system.name for system in self.systems if system.name != self.against]
        if self.against is None:
            return []
        return [self._compare(name, self.against, *title) for title in self.titles() for name in others]

    def _compare(self, system: str, against: str, title: str, collection: str, split: str) -> Comparison:
        ours, weights = self.values(system, title, METRICS[0])
        theirs, _ = self.values(against, title, METRICS[0])
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        signs = np.sign(np.concatenate(differences))
        low, high = bootstrap_interval(differences, weights) or (None, None)
        return Comparison(
            collection,
            split,
            system,
            against,
            difference=weighted_mean(differences, weights),
            low=low,
            high=high,
            p=randomisation_test(differences, weights),
            better=int((signs > 0).sum()),
            worse=int((signs < 0).sum()),
            queries=len(signs),
        )

    def query_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each query: each system's metrics, and its nDCG@10 minus that of `against`."""
        for entry in self.tasks.tasks:
            found = {system.name: self.scores[system.name, entry.title] for system in self.systems}
            for part, query_ids in next(iter(found.values())).queries.items():
                for i, query_id in enumerate(query_ids):
                    values = {name: {m: own.values[part][m][i] for m in METRICS} for name, own in found.items()}
                    row = {"collection": entry.collection, "part": part, "query_id": query_id, "systems": values}
                    if self.against is not None:
                        base = values[self.against][METRICS[0]]
                        row["against"] = self.against
                        row["difference"] = {n: v[METRICS[0]] - base for n, v in values.items() if n != self.against}
                    yield row

    def write(self, run: Run) -> str:
        """Write the table, the comparisons, the values of each query and mteb's results; returns the table.

        mteb's results of an earlier evaluation are removed: they may be of an encoder that is no longer there.
        """
        comparisons = self.comparisons()
        table = results_table(self.rows()) + (f"\n\n{comparison_table(comparisons)}" if comparisons else "")
        write_json(run.comparisons_file, [asdict(comparison) for comparison in comparisons])
        write_jsonl(run.query_values_file, self.query_rows())
        shutil.rmtree(run.mteb, ignore_errors=True)
        for (system, title), found in self.scores.items():
            write_json(run.mteb / file_name(system) / f"{file_name(title)}.json", found.mteb)
        with atomic_write(run.table_file) as handle:
            handle.write(f"{table}\n")
        return table


def file_name(name: str) -> str:
    """Turn a name into one part of a path."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Render comparisons as a Markdown table."""
    lines = [
        "| collection | system | against | nDCG@10, difference [95 %] | p | queries better / worse / equal |",
        "|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        interval = "" if c.low is None else f" [{c.low:+.3f}, {c.high:+.3f}]"
        counts = f"{c.better} / {c.worse} / {c.queries - c.better - c.worse}"
        names = (f"{c.collection} {c.split}", c.system, c.against)
        lines.append(table_row((*names, f"{c.difference:+.3f}{interval}", f"{c.p:.4f}", counts)))
    return "\n".join(lines)
