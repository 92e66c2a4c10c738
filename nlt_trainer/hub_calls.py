"""Calls to the Hub: repeated where it is busy, and one line with the remedy where it refuses."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from nlt_trainer.errors import NLTError

logger = logging.getLogger(__name__)

T = TypeVar("T")
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which the same call may succeed."""
ATTEMPTS = 5


def patiently(call: Callable[[], T]) -> T:
    """Return what `call` returns; where the Hub is busy or the connection breaks, wait as it asks and call again.

    The Hub's client repeats uploads and listings by itself, commits and tags it does not.

    Args:
        call: may run several times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (httpx2.HTTPError, json.JSONDecodeError, RuntimeError) as error:  # RuntimeError: a thread's upload
            cause = _hub_error(error)
            if attempt == ATTEMPTS or cause is None or not _passes(cause):
                raise
            seconds = _asked(cause) or 2 ** (attempt - 1)
            logger.warning("the Hub is busy (%s); again in %d s", _first_line(cause), seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _hub_error(error: BaseException) -> BaseException | None:
    """The error of the Hub or of the network in a chain of causes."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, (httpx2.HTTPError, json.JSONDecodeError)):
        link = link.__cause__
    return link


def _passes(error: BaseException) -> bool:
    """Whether the same call may succeed later; an answer that is no JSON comes from an overloaded proxy."""
    return error.response.status_code in BUSY if isinstance(error, HfHubHTTPError) else True


def _asked(error: BaseException) -> int | None:
    """Seconds that the Hub asks to wait."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1  # the rest of a second
    after = error.response.headers.get("Retry-After", "")
    return int(after) if after.isdigit() else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises inside the block into one line with the remedy.

    Args:
        repo: Hub id that the calls are about.

    Raises:
        NLTError: in place of every error of the client or of the network.
    """
    try:
        yield
    except NLTError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # ValueError: a card that the Hub refuses
        cause = error if isinstance(error, ValueError) else _hub_error(error) or error
        raise NLTError(f"{repo}: {explain(cause, repo)}") from error


def explain(error: BaseException, repo: str) -> str:
    """What went wrong and what to do about it; no header and no token is in it."""
    if isinstance(error, HFValidationError):
        return "this is no Hub id; write ORG/NAME with letters, digits, '-', '_' and '.'"
    if isinstance(error, LocalTokenNotFoundError):
        return "the Hub wants to know who you are; log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 forbids every call; unset it"
    if isinstance(error, GatedRepoError):
        return f"it is gated; accept its terms on https://huggingface.co/{repo} and run again when access is granted"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision; leave revision out for the newest"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not accept the token (401); log in with `hf auth login`, or correct HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "it is not on the Hub, or private and not yours to see; correct the id, or log in with `hf auth login`"
    if status == 403:
        return "the token does not permit this (403); take one that may write there, or another ORG"
    if status == 429:
        return "the Hub takes no more calls for now (429); run again later, what it has is not sent twice"
    if isinstance(error, json.JSONDecodeError) or (status is not None and status >= 500):
        return f"the Hub fails ({status or 'unreadable answer'}); run again later, what it has is not sent twice"
    if isinstance(error, (httpx2.TransportError, ConnectionError)):
        return f"the Hub cannot be reached ({_first_line(error)}); check the network and run again, it goes on"
    return " ".join(str(error).split()) or type(error).__name__
