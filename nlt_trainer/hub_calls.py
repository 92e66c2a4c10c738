"""Call the Hub again when it is busy, and explain its errors with a remedy, for models and data sets."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from nlt_trainer.errors import NLTError
from nlt_trainer.program import DISK

logger = logging.getLogger(__name__)

T = TypeVar("T")
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP status codes after which the same call may succeed later."""
ATTEMPTS = 5
TIMEOUT = 10
"""Seconds after which the Hub counts as out of reach."""


def patiently(call: Callable[[], T]) -> T:
    """Return what `call` returns; if the Hub is busy or the connection breaks, wait and call again.

    The Hub may say how long to wait. Its client repeats uploads and listings by itself, but not commits and tags.

    Args:
        call: a function that may run several times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (httpx2.HTTPError, json.JSONDecodeError, RuntimeError) as error:  # RuntimeError: an upload in a thread
            cause = _link(error, httpx2.HTTPError, json.JSONDecodeError)
            if attempt == ATTEMPTS or cause is None or not _passes(cause):
                raise
            seconds = _asked(cause) or 2 ** (attempt - 1)
            logger.warning("the Hub is busy (%s); again in %d s", _first_line(cause), seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _link(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """The first error of one of these kinds in the chain of causes that a traceback would show."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, kinds):
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return link


def _passes(error: BaseException) -> bool:
    """Whether the same call may succeed later. An answer that is not JSON comes from an overloaded proxy."""
    return error.response.status_code in BUSY if isinstance(error, HfHubHTTPError) else True


def _asked(error: BaseException) -> int | None:
    """Seconds that the Hub asks the client to wait; `None` if it does not say."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1  # the Hub leaves out the fraction of a second
    after = error.response.headers.get("Retry-After", "")
    return int(after) if after.isdigit() else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@functools.cache
def hub_answers() -> bool:
    """Whether the Hub can be reached; a process asks it only once."""
    if is_offline_mode():
        return False
    try:
        HfApi().dataset_info("mteb/scifact", timeout=TIMEOUT)
    except HfHubHTTPError:
        return True  # it answers, even if it refuses this data set
    except Exception:  # from the HTTP library below; `datasets` would try for half a minute before it gives up
        return False
    return True


@contextmanager
def explained(repo: str, *, repo_type: str = "model", revision: str | None = None) -> Iterator[None]:
    """Turn an error of the Hub's client inside the block into one line with the remedy.

    Args:
        repo: Hub id that the calls are about.
        repo_type: `model` or `dataset`.
        revision: the revision that is asked for.

    Raises:
        NLTError: in place of every error of the client or of the network.
        OSError: the disk is full, may not be written or fails.
    """
    try:
        yield
    except NLTError:
        raise
    except json.JSONDecodeError as error:  # the block reads no other JSON than the Hub's answers
        raise NLTError(f"{repo}: {_fails('unreadable answer')}") from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # ValueError: a card that the Hub refuses
        raise_of_disk(error)
        raise NLTError(f"{repo}: {explain(error, repo, repo_type=repo_type, revision=revision)}") from error


def raise_of_disk(error: BaseException) -> None:
    """Raise the error of the file system, such as a full disk, that a failure of the Hub's client comes from, if any.

    Raises:
        OSError: it is one about which a user can do something.
    """
    cause = _link(error, OSError)
    if isinstance(cause, OSError) and cause.errno in DISK and not isinstance(cause, ConnectionError):
        raise cause from None


def download_command(repo: str, *, repo_type: str = "model", revision: str | None = None) -> str:
    """The command with which a user fetches a repository on a machine that has a network."""
    kind = "" if repo_type == "model" else f" --repo-type {repo_type}"
    return f"hf download {repo}{kind}" + (f" --revision {revision}" if revision else "")


def explain(error: BaseException, repo: str, *, repo_type: str = "model", revision: str | None = None) -> str:
    """Say what is wrong with a repository and what to do about it. The text contains no header and no token.

    Args:
        error: what a library raised; the Hub's own error may be any of its causes.
        repo: Hub id of the model or the data set, as the user wrote it.
        repo_type: `model` or `dataset`.
        revision: the revision that was asked for.

    Returns:
        A sentence that calls the repository "it". For an error that does not come from the Hub, the error's own
        message on one line.
    """
    page = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    if _link(error, HFValidationError):
        return "it is no Hub id; write ORG/NAME with letters, digits, '-', '_' and '.'"
    if _link(error, LocalTokenNotFoundError):
        return "the Hub wants to know who you are; log in with `hf auth login`, or set HF_TOKEN"
    if _link(error, GatedRepoError):
        return f"it is gated; accept its terms on {page}, log in (`hf auth login`), run again when access is granted"
    if _link(error, RevisionNotFoundError):
        return f"it has no revision {revision or 'main'!r}; {page}/commits/main lists them"
    if _link(error, RepositoryNotFoundError):
        return "it is not on the Hub, or private and not yours to see; correct the id, or log in with `hf auth login`"
    answer = _link(error, HfHubHTTPError)
    if refusal := answer and _refusal(answer):
        return refusal
    if _link(error, LocalEntryNotFoundError):
        command = download_command(repo, repo_type=repo_type, revision=revision)
        return (
            "it is not in the Hub's cache, or not whole, and the Hub cannot be reached (HF_HUB_OFFLINE=1, or no "
            f"network). Run `{command} --local-dir DIR` where there is a network, and give DIR in place of the id"
        )
    if _link(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 forbids every call; unset it"
    if (broken := _link(error, httpx2.TransportError, ConnectionError)) is not None:
        return f"the Hub cannot be reached ({_first_line(broken)}); check the network and run again, it goes on"
    if "trust_remote_code" in str(error):  # the libraries advise to let the code run
        return "it contains custom code, which never runs here; take one whose classes the libraries have themselves"
    said = answer if isinstance(error, RuntimeError) and answer else error  # a thread's error says no more
    return " ".join(str(said).split()) or type(said).__name__


def _refusal(answer: BaseException) -> str | None:
    """Say what the status of an answer means; `None` if the answer's own message says it better."""
    assert isinstance(answer, HfHubHTTPError)
    status = answer.response.status_code
    if status == 401:
        return "the Hub does not accept the token (401); log in with `hf auth login`, or correct HF_TOKEN"
    if status == 403:
        return "the token does not permit this (403); take one that may read or write there, or another ORG"
    if status in (409, 412):
        return f"another program has changed it meanwhile ({status}); run again, what has arrived is not sent twice"
    if status == 429:
        return "the Hub takes no more calls for now (429); run again later, what has arrived is not sent twice"
    return _fails(status) if status >= 500 else None


def _fails(reason: int | str) -> str:
    return f"the Hub fails ({reason}); run again later, what has arrived is not sent twice"
