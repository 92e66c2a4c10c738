"""A server of the OpenAI completions protocol that says how likely each token of a prompt is."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.prompt_tokens import sequence_start

RETRIES = 8
"""How often a request is sent again to a server that is busy or out of reach; the waits grow from 0.5 to 8 seconds."""
TIMEOUT = 600
"""Seconds that one answer may take; a server with many requests in flight lets some wait."""
KEY = "OPENAI_API_KEY"
"""The environment variable with the server's key, as in OpenAI's own client."""
PROBE = "The first of many words, and the last one."


@dataclass(frozen=True)
class Prompt:
    """A prompt in both forms of the protocol.

    Args:
        ids: token ids, with those that the tokenizer puts before every text.
        text: the same without these, for a server that reads text alone; `None` for one that reads ids.
    """

    ids: tuple[int, ...]
    text: str | None = None


class CompletionServer:
    """Asks a server for the log-probability of each token of a prompt given all tokens before it.

    vLLM is sent token ids and `prompt_logprobs`. Any other server is sent ids or, where it reads none, text, with
    `echo` and `logprobs`; llama.cpp's Python server is one that reads text. Which form a server understands is found
    by a short prompt. A busy server is asked again, after a wait that it may name.

    Args:
        url: address of the protocol, such as `http://127.0.0.1:8000/v1`.
        model: the server's name of the model; `None` means the first that it lists.

    Attributes:
        model: the server's name of the model.
        root: what the server says that model was loaded from; `None` if it does not say.
        context_length: tokens that it reads at most; `None` if it does not say.

    Raises:
        NLTError: the extra `remote` is not installed, the server is out of reach, or it has no such model.
    """

    def __init__(self, url: str, *, model: str | None) -> None:
        self.url, self._library = url, _client_library()
        self._client = self._library.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY) or "none",
            max_retries=RETRIES,
            timeout=self._library.Timeout(TIMEOUT, connect=10),
        )
        with self._explained():
            listed = json.loads(self._client.models.with_raw_response.list().text)["data"]
        served = {entry["id"]: entry for entry in listed}
        if not served or model not in {None, *served}:
            raise NLTError(f"LLM server {url} has no model {model!r}; set llm_model to one of {[*served]}")
        self.model = model or next(iter(served))
        self.root: str | None = served[self.model].get("root")
        self.context_length: int | None = served[self.model].get("max_model_len")
        self._ask = self._echo_of_text

    @property
    def reads_ids(self) -> bool:
        """Whether the server is sent token ids, see `find_form`."""
        return self._ask != self._echo_of_text

    def find_form(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find the form of a request that the server understands, by a short prompt.

        Raises:
            NLTError: it understands none, or makes other tokens of a text than the tokenizer.
        """
        self._tokenizer = tokenizer
        ids = tuple(tokenizer(PROBE, add_special_tokens=False).input_ids)
        refused = ""
        for ask in (self._prompt_logprobs, self._echo_of_ids, self._echo_of_text):
            try:
                ask(Prompt((*sequence_start(tokenizer), *ids), PROBE))
            except NotUnderstood as error:
                refused = str(error)
            else:
                self._ask = ask
                return
        raise NLTError(
            f"LLM server {self.url} gives no log-probabilities of a prompt ({refused}); it must know prompt_logprobs, "
            "as vLLM does, or echo with logprobs, as llama-cpp-python does with --logits_all true"
        )

    def log_probabilities(self, prompt: Prompt) -> np.ndarray:
        """Log-probability of each token of a prompt but the first given all before it: `(T - 1,)` float32, nats.

        Raises:
            NLTError: the server cannot be asked, refuses the prompt, or makes other tokens of it.
        """
        try:
            return np.array(self._ask(prompt), np.float32)
        except NotUnderstood as error:
            raise NLTError(f"LLM server {self.url} did not understand a prompt: {error}") from error

    def _prompt_logprobs(self, prompt: Prompt) -> list[float]:
        """vLLM's form: a dict of token ids, among them the prompt's own, for each place."""
        found = self._choice(prompt=list(prompt.ids), extra_body={"prompt_logprobs": 0}).get("prompt_logprobs")
        if not found or len(found) != len(prompt.ids):
            raise NotUnderstood("no prompt_logprobs")
        for place, (own, given) in enumerate(zip(prompt.ids[1:], found[1:], strict=True), start=1):
            if str(own) not in given:
                self._refuse(prompt.ids, place, next((v.get("decoded_token") for v in given.values()), None))
        return [given[str(own)]["logprob"] for own, given in zip(prompt.ids[1:], found[1:], strict=True)]

    def _echo_of_ids(self, prompt: Prompt) -> list[float]:
        return self._echo(prompt, list(prompt.ids))

    def _echo_of_text(self, prompt: Prompt) -> list[float]:
        return self._echo(prompt, prompt.text)

    def _echo(self, prompt: Prompt, sent: str | list[int] | None) -> list[float]:
        """The older form: the tokens of the prompt as strings, with what was generated behind them."""
        found = self._choice(prompt=sent, echo=True, logprobs=1).get("logprobs") or {}
        tokens, values = found.get("tokens") or [], found.get("token_logprobs") or []
        if len(values) <= 1 or any(value is None for value in values[1:]):
            raise NotUnderstood("no logprobs of an echoed prompt")
        own = [str(self._tokenizer.decode([i])) for i in prompt.ids]
        for place, text in enumerate(own):
            if place >= len(tokens) or not _same(text, tokens[place]):
                self._refuse(prompt.ids, place, tokens[place] if place < len(tokens) else None)
        return values[1 : len(own)]

    def _choice(self, **request: Any) -> dict[str, Any]:
        """The answer to a request that generates one token, because no server accepts none."""
        create = self._client.completions.with_raw_response.create
        with self._explained():
            answer = create(model=self.model, max_tokens=1, temperature=0, **request)
        try:
            choice: dict[str, Any] = json.loads(answer.text)["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NLTError(
                f"LLM server {self.url} gives an answer that is no completion; check the address"
            ) from error
        return choice

    def _refuse(self, ids: Sequence[int], place: int, theirs: str | None) -> None:
        before = self._tokenizer.decode(list(ids[max(0, place - 8) : place]))
        raise NLTError(
            f"LLM server {self.url} has {theirs!r} as token {place} of a prompt, after {before!r}, where tokenizer "
            f"{self._tokenizer.name_or_path!r} has {self._tokenizer.decode([ids[place]])!r}; set llm_tokenizer to the "
            f"one of the server's model {self.model!r}"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the client into one line. Neither the key nor the prompt is in it."""
        library = self._library
        try:
            yield
        except (library.AuthenticationError, library.PermissionDeniedError) as error:
            raise NLTError(f"LLM server {self.url} does not accept the key; set {KEY}") from error
        except (library.BadRequestError, library.UnprocessableEntityError) as error:
            raise NotUnderstood(_first_line(error)) from error
        except library.NotFoundError as error:
            raise NLTError(f"LLM server {self.url} has no such page; the address ends in /v1 for most") from error
        except library.APIStatusError as error:
            raise NLTError(
                f"LLM server {self.url} fails ({error.status_code}), also after {RETRIES} more requests; run again "
                "later, what is scored is in the cache"
            ) from error
        except library.APIConnectionError as error:
            raise NLTError(
                f"LLM server {self.url} cannot be reached ({error.__cause__ or error}); start it or correct the "
                "address, and run again: what is scored is in the cache"
            ) from error


class NotUnderstood(NLTError):
    """The server does not know this form of a request, or refuses a prompt."""


def _same(own: str, theirs: str) -> bool:
    """Whether two texts stand for one token. A part of a character has none, and some decoders drop spaces."""
    if "\ufffd" in own + theirs or not own.strip() or not theirs.strip():
        return True
    return own.strip() == theirs.strip()


def _first_line(error: Exception) -> str:
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(text or error).split())[:200]


def _client_library() -> Any:
    if importlib.util.find_spec("openai") is None:
        raise NLTError(
            "an LLM on a server needs openai's client, which is not installed; pip install 'nlt_trainer[remote]'"
        )
    return importlib.import_module("openai")
