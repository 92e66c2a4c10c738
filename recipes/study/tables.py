"""Write the tables and pictures of the study's guide from its results.

```bash
python recipes/study/tables.py recipes/study/results.parquet --plots recipes/study
```

In `README.md` beside this file a table stands between `<!-- table: NAME ENCODER COLLECTIONS -->` and
`<!-- end of table -->`, and everything between these lines is replaced. ENCODER is a start in the grid, COLLECTIONS
limits the table to what was trained on these, and without it all are in the table. NAME is one of these:

- `in_domain`: what each objective gains over the start on the collection whose queries it was trained on;
- `elsewhere`: what it gains on all other collections, by the collection that it was trained on;
- `amounts`: what the objectives gain in domain that differ from another one in queries, candidates or wrong labels
  alone, and that are left out of the other tables;
- `cost`: what the LLM reads for a training, what is gained, and how much it reads for a hundredth.

Gains are differences in nDCG@10, means over seeds, and a column says how many seeds there are at least. The p-values
come from a paired randomisation test of an objective against another on all queries, each with the mean of its values
over the seeds that both have; every collection counts the same. They say how sure a difference is over queries, and
not over seeds.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from plots import AMOUNT, Panel, amount_chart, objective_chart

from nlt_trainer.evaluation.significance import randomisation_test
from nlt_trainer.files import atomic_write
from nlt_trainer.report.plots import save_png
from nlt_trainer.run.results import table_row
from nlt_trainer.terminal import say

METRIC = "ndcg_at_10"
COMPARED_WITH = ("likelihood gain", "InfoNCE, labels", "DREAM", "random heads")
BLOCK = re.compile(r"(<!-- table: (\w+) (\w+(?: \w+)*) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)


def read_results(path: Path, encoder: str, *collections: str) -> pd.DataFrame:
    """Rows of the trainings from one start, with what the start itself has on the same queries.

    Args:
        path: the study's results.
        encoder: the start.
        collections: those that were trained on; none means all.

    Returns:
        The rows with the columns `start`, the start's nDCG@10, `start_values`, that of each query, and `amount`,
        whether the objective differs from another one by an amount alone.
    """
    rows = pd.read_parquet(path)
    rows["query_values"] = rows["query_values"].map(np.asarray)
    start = rows[(rows.objective == "start") & (rows.encoder == encoder)]
    start = start.rename(columns={METRIC: "start", "query_values": "start_values"})
    columns = ["eval_data", "split", "start", "start_values"]
    trained = rows[(rows.encoder == encoder) & rows.train_data.isin(collections or rows.train_data.dropna())]
    # queries for tuning are no result, and have no row of the start
    trained = trained.assign(amount=trained.objective.map(lambda name: bool(AMOUNT.fullmatch(name))))
    return trained.merge(start[columns], on=["eval_data", "split"])


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean gain over the start for each objective (row) and training collection (column), best objective first.

    An objective has a `mean` if it was trained on all collections.
    """
    rows = rows.assign(gain=rows[METRIC] - rows.start)
    table = rows.pivot_table(index="objective", columns="train_data", values="gain", sort=False)
    table["mean"] = table.mean(axis=1, skipna=False)
    return table.sort_values("mean", ascending=False)


def p_value(rows: pd.DataFrame, one: str, other: str) -> float | None:
    """p-value of the difference between two objectives; `None` where they have no collections and seeds in common."""
    each = ["train_data", "eval_data", "split"]
    values = rows.set_index(["objective", *each, "seed"])["query_values"]
    if one == other:
        return None
    both = values[one].to_frame("one").join(values[other].rename("other"), how="inner")
    if both.empty:
        return None
    differences = [*(both.one - both.other).groupby(each).agg(lambda found: np.mean([*found], axis=0))]
    return randomisation_test(differences, [1 / len(differences)] * len(differences))


def seeds(rows: pd.DataFrame) -> pd.Series:
    """How many seeds each objective has on every collection that it was trained on."""
    return rows.groupby(["objective", "train_data"])["seed"].nunique().groupby("objective").min()


def in_domain(rows: pd.DataFrame) -> list[list[str]]:
    """Gains on the collections that were trained on."""
    own = rows[(rows.eval_data == rows.train_data) & ~rows.amount]
    table, starts = gains(own), own.groupby("train_data")["start"].first()
    others = [name for name in COMPARED_WITH if name in table.index]
    number = seeds(own)
    lines = [["objective", *table.columns, "seeds", *(f"p against {name}" for name in others)]]
    lines.append(["nDCG@10 of the start", *(f"{starts[c]:.3f}" for c in table.columns[:-1]), f"{starts.mean():.3f}"])
    lines[-1] += [""] * (1 + len(others))
    for name, row in table.iterrows():
        tests = (p_value(own, str(name), other) for other in others)
        shown = ("" if p is None else f"{p:.2g}" for p in tests)
        lines.append([str(name), *map(signed, row), str(number[name]), *shown])
    return lines


def elsewhere(rows: pd.DataFrame) -> list[list[str]]:
    """Mean gains on the collections that were not trained on."""
    others = rows[(rows.eval_data != rows.train_data) & ~rows.amount]
    table = gains(others)
    names = [name for name in COMPARED_WITH if name in table.index]
    lines = [["objective", *table.columns, *(f"p against {name}" for name in names)]]
    for name, row in table.iterrows():
        tests = (p_value(others, str(name), other) for other in names)
        lines.append([str(name), *map(signed, row), *("" if p is None else f"{p:.2g}" for p in tests)])
    return lines


def of_amounts(rows: pd.DataFrame) -> list[list[str]]:
    """Gains of the objectives that differ from another one by an amount, in the order of the grid."""
    own = rows[(rows.eval_data == rows.train_data) & rows.amount]
    table = gains(own).reindex(own.objective.unique())
    return [["objective", *table.columns], *([str(name), *map(signed, row)] for name, row in table.iterrows())]


def cost(rows: pd.DataFrame) -> list[list[str]]:
    """What a training costs on average, with what the LLM reads before it; of objectives that gain something."""
    own = rows[(rows.eval_data == rows.train_data) & ~rows.amount].assign(gain=rows[METRIC] - rows.start)
    each = own.groupby(["objective", "train_data"])[["lm_tokens", "gain"]].mean()
    whole = each.unstack().dropna().stack(future_stack=True)  # trained on all collections
    means = whole.groupby("objective").mean().sort_values("gain", ascending=False)
    lines = [["objective", "thousand LLM tokens", "gain", "thousand LLM tokens for 0.01"]]
    for name, row in means[means.gain > 0].iterrows():
        thousands = row.lm_tokens / 1000
        lines.append([str(name), f"{thousands:,.0f}", signed(row.gain), f"{thousands / row.gain / 100:,.0f}"])
    return lines


TABLES: dict[str, Callable[[pd.DataFrame], list[list[str]]]] = {
    "in_domain": in_domain,
    "elsewhere": elsewhere,
    "amounts": of_amounts,
    "cost": cost,
}


AMOUNTS = [
    Panel("likelihood gain", "queries"),
    Panel("InfoNCE, labels", "queries"),
    Panel("likelihood gain", "candidates"),
    Panel("InfoNCE, labels", "% wrong", level="likelihood gain"),
]
"""What the picture of amounts shows."""


def draw(rows: pd.DataFrame, folder: Path) -> None:
    """Write the pictures of one start's results as PNG."""
    own = rows[rows.eval_data == rows.train_data]
    tables = [gains(part[~part.amount])["mean"] for part in (own, rows.drop(own.index))]
    save_png(objective_chart(*tables), folder / "objectives.png")
    found = {match.group(1, 3) for name in own.objective.unique() if (match := AMOUNT.fullmatch(name))}
    if shown := [panel for panel in AMOUNTS if (panel.objective, panel.kind) in found]:
        alike = own[own.seed.isin(own[own.amount].seed)]  # the usual amounts with the seeds that the others have
        save_png(amount_chart(gains(alike).drop(columns="mean"), shown), folder / "amounts.png")


def signed(value: float) -> str:
    """A difference with its sign; nothing where there is none."""
    return "" if pd.isna(value) else f"{value:+.3f}"


def markdown(lines: Iterable[list[str]]) -> str:
    """A table whose first line is its head."""
    head, *body = lines
    return "\n".join([table_row(head), "|" + "---|" * len(head), *map(table_row, body)])


def main(argv: list[str] | None = None) -> None:
    """Replace the tables in the guide, and draw the pictures beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--guide", type=Path, default=Path(__file__).with_name("README.md"))
    parser.add_argument("--plots", type=Path, help="folder of the pictures; unset: none are drawn")
    parser.add_argument("--plotted", nargs="+", default=["static"], help="the start, and collections, that are drawn")
    options = parser.parse_args(argv)

    def table(block: re.Match[str]) -> str:
        begin, name, chosen, end = block.groups()
        return f"{begin}\n{markdown(TABLES[name](read_results(options.results, *chosen.split())))}\n\n{end}"

    text, number = BLOCK.subn(table, options.guide.read_text(encoding="utf-8"))
    with atomic_write(options.guide) as handle:
        handle.write(text)
    say(f"{options.guide}: {number} tables")
    if options.plots:
        draw(read_results(options.results, *options.plotted), options.plots)


if __name__ == "__main__":
    main()
