"""A server of the OpenAI completions protocol that says how likely each token of a prompt is."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
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
PROBES = "The first of many words, and the last one.", "Another line."
PROMPTS = 8
"""The most prompts that one request holds, if the server answers several together."""
BUSY = (408, 429, 502, 503, 504)
"""Statuses of an answer that say nothing about the request. llama-cpp-python gives 500 to a form that it lacks."""
IMPOSSIBLE = -9999.0
"""What vLLM writes for the logarithm of 0, which JSON does not have."""


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
    `echo` and `logprobs`. Which form a server understands is found by a short prompt, and whether it answers several
    prompts of one request by another. A busy server is asked again, after a wait that it may name.

    llama-cpp-python, up to its version 0.3.36 at least, gives each echoed token its log-probability one place too
    late, as if it came again after itself, unless the prompt begins with a begin-of-sequence token, which its echo
    leaves out. It is refused in the first case, because the right numbers cannot be had from such an answer.

    Args:
        url: address of the protocol, such as `http://127.0.0.1:8000/v1`.
        model: the server's name of the model; `None` means the first that it lists.

    Attributes:
        model: the server's name of the model.
        root: what the server says that model was loaded from; `None` if it does not say.
        context_length: tokens that it reads at most; `None` if it does not say.
        prompts: the most that one request may hold, see `find_form`.

    Raises:
        NLTError: the extra `remote` is not installed, the server is out of reach, or it has no such model.
    """

    def __init__(self, url: str, *, model: str | None) -> None:
        if importlib.util.find_spec("openai") is None:
            raise NLTError(
                "an LLM on a server needs openai's client, which is not installed; pip install 'nlt_trainer[remote]'"
            )
        self.url, self._library = url, importlib.import_module("openai")
        self._key = os.environ.get(KEY, "").strip() or "none"
        if not (self._key.isascii() and self._key.isprintable()):
            raise NLTError(f"{KEY} has a character that no key has; set it again")
        with self.connected() as runner:
            served = runner.run(self._served())
        if not served or model not in {None, *served}:
            raise NLTError(f"LLM server {url} has no model {model!r}; set llm_model to one of {[*served]}")
        self.model = model or next(iter(served))
        self.root: str | None = served[self.model].get("root")
        self.context_length: int | None = served[self.model].get("max_model_len")
        self._ask, self.prompts = self._echo_of_text, 1
        self._texts: dict[int, str] = {}  # of tokens that were compared before

    @property
    def reads_ids(self) -> bool:
        """Whether the server is sent token ids, see `find_form`."""
        return self._ask != self._echo_of_text

    @contextmanager
    def connected(self) -> Iterator[asyncio.Runner]:
        """Connections for the calls that the runner makes; when the block ends, those under way are cut."""
        with asyncio.Runner() as runner:
            self._client = self._library.AsyncOpenAI(
                base_url=self.url,
                api_key=self._key,
                max_retries=RETRIES,
                timeout=self._library.Timeout(TIMEOUT, connect=10),
            )
            try:
                yield runner
            finally:
                runner.run(self._client.close())

    def find_form(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find the form of a request that the server understands, and whether it may hold several prompts.

        Raises:
            NLTError: it understands none, or makes other tokens of a text than the tokenizer.
        """
        self._tokenizer = tokenizer
        self._texts.clear()
        start = sequence_start(tokenizer)
        probes = [Prompt((*start, *tokenizer(text, add_special_tokens=False).input_ids), text) for text in PROBES]
        refused = ""
        with self.connected() as runner:
            for ask in (self._prompt_logprobs, self._echo_of_ids, self._echo_of_text):
                try:
                    runner.run(self._probe(ask, probes[:1]))
                except NotUnderstood as error:
                    refused = str(error)
                    continue
                self._ask, self.prompts = ask, 1
                with suppress(NLTError):  # what is wrong with more than this form is said of the first prompts
                    runner.run(self._probe(ask, probes))
                    self.prompts = PROMPTS
                return
        raise NLTError(
            f"LLM server {self.url} gives no log-probabilities of a prompt ({refused}); it must know prompt_logprobs, "
            "as vLLM does, or echo with logprobs, for which llama-cpp-python wants --logits_all true"
        )

    async def _probe(self, ask: Ask, probes: Sequence[Prompt]) -> None:
        """Ask in a form at which the server may fail, which is worth few retries, unless it says that it is busy."""
        patient = self._client
        self._client = patient.with_options(max_retries=1)
        try:
            await ask(probes)
        except Busy:
            self._client = patient
            await ask(probes)
        finally:
            self._client = patient

    async def log_probabilities(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Log-probability of each token of a prompt but the first given all before it: `(T - 1,)` float32, nats.

        Args:
            prompts: of one request, at most as many as `self.prompts` says.

        Raises:
            NLTError: the server cannot be asked, refuses a prompt, or makes other tokens of it.
        """
        try:
            found = [np.array(values, np.float32) for values in await self._ask(prompts)]
        except NotUnderstood as error:
            raise NLTError(f"LLM server {self.url} refuses a prompt: {error}") from error
        return [np.where(values <= IMPOSSIBLE, -np.inf, values) for values in found]

    async def _served(self) -> dict[str, dict[str, Any]]:
        """What the server says of each of its models."""
        with self._explained():
            answer = await self._client.models.with_raw_response.list()
        try:
            return {entry["id"]: entry for entry in json.loads(answer.text)["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_protocol() from error

    async def _prompt_logprobs(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        choices = await self._choices([prompt.ids for prompt in prompts], prompt_logprobs=0)
        return [self._read_prompt_logprobs(*answered) for answered in zip(prompts, choices, strict=True)]

    def _read_prompt_logprobs(self, prompt: Prompt, choice: dict[str, Any]) -> list[float]:
        """vLLM's form: a dict of token ids, among them the prompt's own, for each place."""
        found = choice.get("prompt_logprobs")
        if not found or len(found) != len(prompt.ids):
            raise NotUnderstood("no prompt_logprobs")
        entries = [given.get(str(own), {}) for own, given in zip(prompt.ids[1:], found[1:], strict=True)]
        self._check_tokens(prompt, 1, [entry.get("decoded_token") for entry in entries])
        return [entry["logprob"] for entry in entries]

    async def _echo_of_ids(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        return await self._echo(prompts, [prompt.ids for prompt in prompts])

    async def _echo_of_text(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        return await self._echo(prompts, [prompt.text for prompt in prompts])

    async def _echo(self, prompts: Sequence[Prompt], sent: Sequence[Any]) -> list[list[float]]:
        choices = await self._choices(sent, echo=True, logprobs=1)
        return [self._read_echo(*answered) for answered in zip(prompts, choices, strict=True)]

    def _read_echo(self, prompt: Prompt, choice: dict[str, Any]) -> list[float]:
        """The older form: the tokens of the prompt as strings, with the one that was generated behind them."""
        found = choice.get("logprobs") or {}
        tokens, values = found.get("tokens") or [], found.get("token_logprobs") or []
        if len(values) <= 1 or len(values) != len(tokens) or any(value is None for value in values[1:]):
            raise NotUnderstood("no logprobs of an echoed prompt")
        start = sequence_start(self._tokenizer)
        left_out = int(bool(start) and not _same(self._text(start[0]), tokens[0]))
        echoed = len(prompt.ids) - left_out
        self._check_tokens(prompt, left_out, [*tokens[:echoed], *[None] * (echoed - len(tokens))])
        if not left_out and len(values) == echoed:
            raise NLTError(
                f"LLM server {self.url} gives each token of a prompt its log-probability one place too late, as "
                "llama-cpp-python (up to 0.3.36 at least) does for a model whose texts begin with no token of their "
                f"own; serve {self.model!r} with vLLM, or give its file or folder as llm, which is then read here"
            )
        return [0.0] * left_out + values[1:echoed]  # a first token that is left out is followed by one without value

    async def _choices(self, prompts: Sequence[Any], **request: Any) -> list[dict[str, Any]]:
        """The answer to each prompt of a request, which generates one token for each, because no server accepts none.

        A server that reads one prompt alone is sent that without a list around it. The client would look at each token
        of a prompt, which takes as long as all that it does besides; what is `extra_body` goes out as it is.
        """
        request["prompt"] = prompts[0] if len(prompts) == 1 else prompts
        create = self._client.completions.with_raw_response.create
        with self._explained():
            answer = await create(model=self.model, prompt="", max_tokens=1, temperature=0, extra_body=request)
        try:
            choices: list[dict[str, Any]] = json.loads(answer.content)["choices"]
            choices = choices if len(choices) == 1 else sorted(choices, key=itemgetter("index"))
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_protocol() from error
        if len(choices) != len(prompts):
            raise NotUnderstood(f"{len(choices)} answers to {len(prompts)} prompts")
        return choices

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.decode([token]))
        return self._texts[token]

    def _check_tokens(self, prompt: Prompt, first: int, theirs: Sequence[str | None]) -> None:
        """Compare the server's tokens with those of a prompt from the place `first` on; `None` is no token."""
        for place, (own, text) in enumerate(zip(prompt.ids[first:], theirs, strict=True), start=first):
            if text is None or not _same(self._text(own), text):
                self._refuse(prompt, place, text)

    def _refuse(self, prompt: Prompt, place: int, theirs: str | None) -> None:
        before = str(self._tokenizer.decode(list(prompt.ids[max(0, place - 8) : place])))
        spelt = [token for token in self._tokenizer.all_special_tokens if token in (prompt.text or "")]
        remedy = (
            f"take {spelt[0]!r} out of the text, which the server reads as a control token"
            if spelt
            else f"set llm_tokenizer to the one of the server's model {self.model!r}"
        )
        raise NLTError(
            f"LLM server {self.url} has {theirs!r} as token {place} of a prompt, after {before!r}, where tokenizer "
            f"{self._tokenizer.name_or_path!r} has {self._text(prompt.ids[place])!r}; {remedy}"
        )

    def _no_protocol(self) -> NLTError:
        return NLTError(f"LLM server {self.url} gives an answer that is not of the protocol; check the address")

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
            raise NLTError(
                f"LLM server {self.url} knows no such page or model ({_first_line(error)}); most addresses end in /v1"
            ) from error
        except library.APIStatusError as error:
            status, later = error.status_code, "run again later, what is scored is in the cache"
            if status in BUSY:
                raise Busy(f"LLM server {self.url} is busy (status {status}); {later}") from error
            raise NotUnderstood(f"it fails with status {status}; {later}") from error
        except library.APIConnectionError as error:
            fault = type(error.__cause__ or error).__name__
            too_late = isinstance(error, library.APITimeoutError) and fault != "ConnectTimeout"
            what = (
                f"has not answered within {TIMEOUT} seconds; set llm_requests to a smaller number"
                if too_late
                else f"cannot be reached ({fault}); start it or correct the address"
            )
            raise NLTError(f"LLM server {self.url} {what}, and run again: what is scored is in the cache") from error
        except ValueError as error:  # of the HTTP library, for an address that is none
            raise NLTError(f"LLM server {self.url} cannot be reached: the address is malformed") from error


class NotUnderstood(NLTError):
    """The server does not know this form of a request, or refuses a prompt."""


class Busy(NLTError):
    """The server, or what stands before it, says that it can answer later."""


Ask = Callable[[Sequence[Prompt]], Coroutine[Any, Any, list[list[float]]]]


def _same(own: str, theirs: str) -> bool:
    """Whether two texts stand for one token. A part of a character has none, and some decoders drop a space."""
    return "\ufffd" in own + theirs or own == theirs or own.strip() == theirs.strip() != ""


def _first_line(error: Exception) -> str:
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(text or error).split())[:200]
