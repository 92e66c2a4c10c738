"""Write one self-contained HTML page on a training run, or on all runs in a folder, and its pictures as PNG files.

```bash
nlt report runs/demo
nlt report runs/demo/dream --examples 20
```

The page shows results, learning curves, the queries that training has changed most, the audit of the teacher, the
heads, time and memory, and the settings that differ from the defaults. Call it in the working directory in which the
run was trained, because the paths in the run's settings may be relative to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nlt_trainer.program import run_main, shown
from nlt_trainer.run.folder import find_runs


def main(argv: list[str] | None = None) -> None:
    """Write `<run>/report.html`; prints what was written."""
    parser = argparse.ArgumentParser(description=shown(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of `nlt train`, or a folder of several")
    parser.add_argument("--examples", type=int, default=5, help="queries shown of the most improved and most harmed")
    parser.add_argument("--embeddings", type=Path, help="folder in which embeddings are kept; unset: the user's cache")
    args = parser.parse_args(argv)
    find_runs(args.run)  # refuses a folder without a run before the libraries of the page are imported
    from nlt_trainer.report.page import write_report

    page, *pictures = write_report(args.run, examples=args.examples, embeddings=args.embeddings)
    print(f"{page}: open it in a browser; pictures {', '.join(str(path) for path in pictures)}")


if __name__ == "__main__":
    run_main(main)
