"""Run a stage as a program: `run_main` calls its `main(argv)`, reports errors in one line and sets the exit code."""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from nlt_trainer.errors import NLTError
from nlt_trainer.files import cache_folder

GOES_ON = {
    "make_queries": "the queries that the LLM has written",
    "mine": "the embeddings that it has on disk, where an encoder mines",
    "score": "the scores that it has in its cache",
    "train": "the last whole checkpoint, if there is one",
    "adapt_scorer": "the last whole checkpoint, if there is one",
    "evaluate": "what it has embedded and scored",
    "push": "what the Hub has",
    "pull": "what has come",
    "adapt": "the stage that was under way",
    "demo": "the stage that was under way",
}
"""Stage that resumes where it stopped -> what it resumes from."""

DISK = {
    errno.EACCES: "give yourself the right to it or name another place",
    errno.EPERM: "give yourself the right to it or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some space on the disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "name a place that is not reached by a circle of links",
    errno.ENOTDIR: "a file stands where a folder is needed, so name another place",
    errno.EEXIST: "a file stands where a folder is needed, so name another place",
    errno.EFBIG: "name a place on another file system, or raise the limit on the size of files",
    errno.EXDEV: "name a place on one disk, in which files and folders can be renamed",
    errno.EBUSY: "another program uses it: end that, or name another place",
    errno.EIO: "the disk cannot be trusted: name a place on another one",
    errno.EPIPE: "what read the output has ended, so let it read to the end or write the output to a file",
}
"""Error of the file system that a user can act on -> the remedy. Other system errors keep their traceback."""

SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers, which are written in Rust, name an error of the file system."""
TORCH_WRITE_ERROR = re.compile(r"iostream error|unexpected pos \d+ vs \d+")
"""What torch says if it cannot write a file to its end. The number of the error is lost."""
NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""What Python's `tempfile` says if it can write to none of the folders that it knows, on a full disk for example."""

STOPPED = 130
"""Exit code of a program that Ctrl-C has ended: 128 plus the number of SIGINT."""
TERMINATED = 143
"""Exit code of a program that was asked to end: 128 plus the number of SIGTERM."""


class Terminated(KeyboardInterrupt):
    """The program was asked to end by SIGTERM, as `kill`, a container or the scheduler of a cluster sends it."""


def shown(doc: str | None) -> str:
    """Turn a module's docstring into the help of a stage: commands lose the fences around them and are indented."""
    lines, inside = [], False
    for line in (doc or "").strip().splitlines():
        if line.startswith("```"):
            inside = not inside
        else:
            lines.append(f"  {line}" if inside else line)
    return "\n".join(lines)


def run_main(
    main: Callable[[list[str] | None], int | None], argv: Sequence[str] | None = None, *, stage: str | None = None
) -> NoReturn:
    """Run a stage and leave the process.

    Wrong input and errors of the file system, whichever library reports them, give one line on stderr without a
    traceback, and exit code 2. Ctrl-C gives one line and exit code 130, SIGTERM the same with exit code 143.

    Args:
        main: the stage; it returns its exit code, or `None` for success.
        argv: its command line; `None` means that of the process.
        stage: its name; `None` takes the name of the running file, which is right under `python -m`.

    Raises:
        SystemExit: always, with the exit code.
    """
    name = f"nlt {stage or Path(sys.argv[0]).stem}"
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.argv = [name, *arguments]  # argparse takes the name in its usage line from here
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or a file may lack characters of a text or a path
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stoppable():
            code = main(arguments)
    except NLTError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        raise SystemExit(2) from None
    except Exception as error:
        if (remedy := _remedy(error)) is None:
            raise
        sys.stderr.write(f"{name}: error: {error}; {remedy}{_of_cache(error)}{_again(name)}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\n{name}: stopped{_again(name)}\n")
        raise SystemExit(TERMINATED if isinstance(interrupt, Terminated) else STOPPED) from None
    raise SystemExit(code or 0)


def terminate(number: int, frame: Any) -> NoReturn:
    """Raise `Terminated`, as a handler of SIGTERM; what is half-written is then removed as after Ctrl-C."""
    raise Terminated


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` until the block ends, and Ctrl-C `KeyboardInterrupt`, where it did so before.

    Libraries in other languages that call Python make errors of their own of whatever is raised there. Where one of
    these signals has come, such an error is taken for it.
    """
    raised: list[type[KeyboardInterrupt]] = []

    def stop(number: int, frame: Any) -> NoReturn:
        raised.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise raised[-1]

    ctrl_c = signal.getsignal(signal.SIGINT) == signal.default_int_handler  # a program in the background ignores it
    taken = (signal.SIGTERM, signal.SIGINT) if ctrl_c else (signal.SIGTERM,)
    previous = {number: signal.signal(number, stop) for number in taken}
    try:
        yield
    except Exception as error:
        if raised:
            raise raised[-1] from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _remedy(error: Exception) -> str | None:
    """What a user can do about an error of the file system; `None` for other errors."""
    if isinstance(error, FileNotFoundError) and NO_TEMPORARY_FOLDER in str(error):
        return "free some space there, or let the environment variable TMPDIR name a folder that can be written"
    number = _error_number(error)
    return None if number is None else DISK.get(number)


def _error_number(error: Exception) -> int | None:
    """The number of an error of the file system, also where a library reports it in words; `None` for other errors."""
    if isinstance(error, OSError):
        return error.errno
    if found := SYSTEM_ERROR.search(str(error)):
        return int(found[1])
    return errno.ENOSPC if TORCH_WRITE_ERROR.search(str(error)) else None


def _of_cache(error: Exception) -> str:
    """Say how to name another place for the user's cache, which no option has named; empty for other places."""
    file = error.filename if isinstance(error, OSError) else None
    of_cache = isinstance(file, str) and Path(file).is_relative_to(cache_folder())
    return "; the environment variable NLT_CACHE names another folder for the cache" if of_cache else ""


def _again(name: str) -> str:
    """Say what a second call resumes from, if the stage can resume."""
    source = GOES_ON.get(name.removeprefix("nlt "))
    return f"; run again, it goes on from {source}" if source else ""
