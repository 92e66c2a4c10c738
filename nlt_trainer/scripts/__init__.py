"""The stages as programs, each with `main(argv)`; `run_main` is how all of them end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from nlt_trainer.errors import NLTError


def run_main(
    main: Callable[[list[str] | None], int | None], argv: Sequence[str] | None = None, *, stage: str | None = None
) -> NoReturn:
    """Run a stage and leave the process: wrong input is one line on stderr and exit code 2, without a traceback.

    Args:
        main: the stage; it returns its exit code, or `None` for success.
        argv: its command line; `None` means that of the process.
        stage: its name; `None` takes the name of the running file, which is right under `python -m`.

    Raises:
        SystemExit: always, with the exit code.
    """
    name = f"nlt {stage or Path(sys.argv[0]).stem}"
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.argv = [name, *arguments]  # argparse takes the program's name of its usage line from here
    try:
        code = main(arguments)
    except NLTError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        raise SystemExit(2) from None
    raise SystemExit(code or 0)
