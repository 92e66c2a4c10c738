"""Compare head files of one LLM: do other seeds, data sets or methods find the same heads?

```bash
nlt compare_heads runs/seed1/heads.json runs/seed2/heads.json --num_heads 16 --heat_maps runs/figures
```
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from nlt_trainer.errors import NLTError
from nlt_trainer.models.heads import HeadSet
from nlt_trainer.plots import head_heat_map, save_png
from nlt_trainer.scripts import run_main, shown


def main(argv: list[str] | None = None) -> None:
    """Print the Jaccard index of the heads of each two files."""
    parser = argparse.ArgumentParser(description=shown(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="HEADS.json", help="two or more head files")
    parser.add_argument(
        "--num_heads",
        type=int,
        default=16,
        help="how many heads are compared: a file's own, if it has so many, else its best",
    )
    parser.add_argument("--heat_maps", type=Path, metavar="FOLDER", help="also draw the scores as FOLDER/1.png, ...")
    args = parser.parse_args(argv)
    if len(args.files) < 2:
        raise NLTError(f"only {args.files[0]} was given; name two head files or more")
    heads = [HeadSet.load(path) for path in args.files]
    print(overlap_table(heads, args.num_heads))
    for number, (path, found) in enumerate(zip(args.files, heads, strict=True), start=1):
        chosen = found.chosen(args.num_heads)
        first = ", ".join(f"{layer}.{head}" for layer, head in chosen.heads[:8])
        print(f"{number}: {path} ({found.score_name}; {origin(found, chosen)}: {first})")
        if args.heat_maps is not None:
            save_png(head_heat_map(chosen, name=str(path)), args.heat_maps / f"{number}.png")


def origin(found: HeadSet, chosen: HeadSet) -> str:
    """Which heads of a file are compared."""
    if chosen is found:
        return f"the file's own {len(found.heads)}, {found.settings.get('selection', 'best')}"
    return f"the best {len(chosen.heads)} by score, the file's own are {len(found.heads)}"


def overlap_table(heads: list[HeadSet], num_heads: int) -> str:
    """Markdown: Jaccard index of the chosen heads of each two files, their mean, and what chance would give."""
    table = np.array([[a.jaccard(b, num_heads) for b in heads] for a in heads])
    share = min(num_heads / np.size(heads[0].scores), 1.0)
    lines = [
        f"| Jaccard index, {num_heads} heads | {' | '.join(str(n + 1) for n in range(len(heads)))} |",
        "|---" * (len(heads) + 1) + "|",
        *(f"| {n + 1} | {' | '.join(f'{value:.2f}' for value in row)} |" for n, row in enumerate(table)),
    ]
    mean = np.mean([table[i, j] for i, j in combinations(range(len(heads)), 2)])
    return "\n".join(lines) + f"\n\nmean of pairs {mean:.2f}; by chance about {share / (2 - share):.2f}\n"


if __name__ == "__main__":
    run_main(main)
