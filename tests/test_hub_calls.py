"""What errors of the Hub mean; the calls themselves are tested against a Hub in `release/test_hub_releases.py`."""

from __future__ import annotations

import errno
import json
from copy import copy
from itertools import pairwise

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from nlt_trainer.errors import NLTError
from nlt_trainer.hub_calls import explain, explained


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """An error as the client raises it."""
    return kind(f"{status} said", response=httpx.Response(status, request=httpx.Request("GET", "https://hf.co")))


def chained(*errors: BaseException, told: bool = True) -> BaseException:
    """The first of some errors, each raised because of the next, or, not `told` so, while it was handled."""
    for error, cause in pairwise(errors):
        error.__context__ = cause
        if told:
            error.__cause__ = cause
    return errors[0]


def offline() -> LocalEntryNotFoundError:
    return LocalEntryNotFoundError("not in the disk cache")


@pytest.mark.parametrize(
    ("errors", "meaning"),
    [
        ([answer(GatedRepoError, 403)], "it is gated; accept its terms on https://huggingface.co/org/name, log in"),
        ([answer(RepositoryNotFoundError, 401)], "it is not on the Hub, or private and not yours to see; correct the"),
        ([answer(RevisionNotFoundError, 404)], "it has no revision 'abc'; https://huggingface.co/org/name/commits/"),
        ([HFValidationError("no id")], "it is no Hub id; write ORG/NAME"),
        ([answer(HfHubHTTPError, 401)], "the Hub does not accept the token (401); log in"),
        ([answer(HfHubHTTPError, 429)], "the Hub takes no more calls for now (429); run again later"),
        ([answer(HfHubHTTPError, 503)], "the Hub fails (503); run again later"),
        ([offline(), OfflineModeIsEnabled("off")], "it is not in the Hub's cache, or not whole, and the Hub cannot"),
        ([OSError("no connection"), offline()], "it is not in the Hub's cache"),
        ([offline(), answer(HfHubHTTPError, 503)], "the Hub fails (503)"),  # it was asked, and answered
        ([OfflineModeIsEnabled("off")], "HF_HUB_OFFLINE=1 forbids every call; unset it"),
        ([ConnectionError("no route"), FileNotFoundError()], "the Hub cannot be reached (no route); check the net"),
        ([OSError("cannot load"), OSError("a"), answer(GatedRepoError, 403)], "it is gated"),
        ([OSError("it has no\n config.json"), answer(RemoteEntryNotFoundError, 404)], "it has no config.json"),
        ([OSError("cannot load"), OSError("disk full")], "cannot load"),
        ([RuntimeError("Error while uploading"), answer(HfHubHTTPError, 400)], "400 said"),
        ([OSError("broken file"), json.JSONDecodeError("no JSON", "{", 0)], "broken file"),  # one on this machine
        ([KeyError()], "KeyError"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_an_error_says_what_is_wrong_and_what_to_do(errors: list[BaseException], meaning: str, told: bool) -> None:
    """Reference: by hand, however deep the Hub's own error lies; any other error speaks for itself, on one line."""
    assert explain(chained(*map(copy, errors), told=told), "org/name", revision="abc").startswith(meaning)


def test_a_data_set_is_told_from_a_model() -> None:
    """Reference: the Hub's addresses, and the command of its client."""
    gated = answer(GatedRepoError, 403)
    assert "https://huggingface.co/datasets/org/set, log in" in explain(gated, "org/set", repo_type="dataset")
    told = explain(offline(), "org/set", repo_type="dataset", revision="abc")
    assert "`hf download org/set --repo-type dataset --revision abc --local-dir DIR` where there is a net" in told
    assert "`hf download org/name --local-dir DIR`" in explain(offline(), "org/name")


def test_what_an_error_hides_is_not_its_cause() -> None:
    """Reference: `raise ... from None`, after which a traceback shows no other error either."""
    error = chained(OSError("disk full"), answer(GatedRepoError, 403), told=False)
    error.__suppress_context__ = True
    assert explain(error, "org/name") == "disk full"


def test_an_answer_of_the_hub_that_cannot_be_read_is_its_failure() -> None:
    """Reference: the message; a page of an overloaded proxy is no JSON."""
    message = r"^org/name: the Hub fails \(unreadable answer\); run again later"
    with pytest.raises(NLTError, match=message), explained("org/name"):
        json.loads("<html>")


def test_an_error_of_the_disk_is_its_own() -> None:
    """Reference: the error that was raised, also in a thread of the client; a connection that breaks is the Hub's."""
    full = OSError(errno.ENOSPC, "No space left on device", "pulled/config.json.lock")
    with pytest.raises(OSError, match=r"pulled/config\.json\.lock") as caught, explained("org/name"):
        raise RuntimeError("an upload failed") from full
    assert caught.value is full
    with pytest.raises(NLTError, match="the Hub cannot be reached"), explained("org/name"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
