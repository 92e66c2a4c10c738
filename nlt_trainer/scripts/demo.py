"""Run every stage on a small example: an encoder learns from a frozen LLM to search Python's standard library.

```bash
make demo
```

LLM and data come with installed packages, so no network is needed. A second call repeats only stages whose output is
missing or whose recipe has changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nlt_trainer.errors import NLTError
from nlt_trainer.program import run_main, shown


def main(argv: list[str] | None = None) -> None:
    """Run all stages, write the report, check the export; says what to do next and what was gained."""
    parser = argparse.ArgumentParser(description=shown(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, default=Path("recipes/demo"), help="folder with the two recipes")
    folder = parser.parse_args(argv).recipes
    gain, dream = folder / "likelihood_gain.yaml", folder / "dream.yaml"
    if not (gain.is_file() and dream.is_file()):
        raise NLTError(f"{folder} has no demo recipes; run in the repository's root or give their folder: --recipes")
    from nlt_trainer.assembly.demo import run_demo

    run_demo(gain, dream)


if __name__ == "__main__":
    run_main(main)
