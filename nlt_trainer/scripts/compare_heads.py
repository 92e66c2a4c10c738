"""Compare head files of one LLM: do other seeds, data sets or methods find the same heads?

```bash
nlt compare_heads runs/seed1/heads.json runs/seed2/heads.json --num_heads 16 --heat_maps runs/figures
```

For each pair of files the Jaccard index is printed: the number of heads that both have, divided by the number that at
least one has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nlt_trainer.errors import NLTError
from nlt_trainer.program import run_main, shown


def main(argv: list[str] | None = None) -> None:
    """Print the Jaccard index of the heads of each pair of files."""
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
    from nlt_trainer.report.head_overlap import compare_heads

    compare_heads(args.files, num_heads=args.num_heads, heat_maps=args.heat_maps)


if __name__ == "__main__":
    run_main(main)
