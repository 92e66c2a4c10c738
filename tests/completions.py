"""A server of the completions protocol on the loopback, which reads prompts with a tiny LLM, with faults on demand."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Lock, Thread
from typing import Any, Literal

import torch

from nlt_trainer.lm.frozen_lm import FrozenLM

Form = Literal["prompt_logprobs", "echo of ids", "echo of text", "none"]


@dataclass
class Completions(ThreadingHTTPServer):
    """A server that understands one form of request for the log-probabilities of a prompt.

    Args:
        lm: what it serves, as the model `tiny`.
        form: the form; with `none` it generates and says nothing about prompts.
        key: that it wants; `None` accepts any.
        faults: statuses of the next answers in place of a completion; 0 cuts the connection.
        seconds: that each answer takes.
        at_once: prompts that it reads together, while others wait; a request counts as all of its prompts.
        most_prompts: that one request may hold; of more it answers the first alone.
        shifted: whether an echo is that of llama-cpp-python, which leaves out the token that begins every text; where
            the tokenizer has none, it has no value for the token that is generated.
    """

    lm: FrozenLM
    form: Form = "prompt_logprobs"
    key: str | None = None
    faults: list[int] = field(default_factory=list)
    seconds: float = 0
    at_once: int = 1000
    most_prompts: int = 1
    shifted: bool = False

    def __post_init__(self) -> None:
        self.request_queue_size = 128  # connections that wait to be accepted; the constructor reads it
        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = True
        self.lock, self.door, self.places = Lock(), Lock(), BoundedSemaphore(self.at_once)
        self.prompts: list[Any] = []
        self.in_flight = self.most_in_flight = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone before its answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def work(self, request: dict[str, Any]) -> None:
        """Take the time of an answer, as soon as there is a place for each prompt."""
        number = min(len(prompts_of(request)), self.at_once)
        with self.door:
            for _ in range(number):
                self.places.acquire()
        time.sleep(self.seconds)
        self.places.release(number)

    def choices(self, request: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The answers to a request, the last one first; `None` where its prompt is of the wrong kind."""
        answers = [self.choice({**request, "prompt": one}) for one in prompts_of(request)]
        found = [{"index": index, **answer} for index, answer in enumerate(answers) if answer is not None]
        return found[: self.most_prompts][::-1] or None

    @torch.inference_mode()
    def log_probabilities(self, ids: list[int]) -> list[float]:
        with self.lock:
            values = self.lm.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return [float(values[t - 1, ids[t]]) for t in range(1, len(ids))]

    def choice(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request with one prompt; `None` where that is of the wrong kind."""
        tokenizer, prompt = self.lm.tokenizer, request["prompt"]
        if isinstance(prompt, str):
            ids = list(tokenizer(prompt, add_special_tokens=False).input_ids)
            begins = self.shifted and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
            ids = [tokenizer.bos_token_id, *ids] if begins else ids
        elif self.form == "echo of text":
            return None
        else:
            ids = prompt
        values, texts = self.log_probabilities(ids), [str(tokenizer.decode([i])) for i in ids]
        if self.form == "prompt_logprobs" and "prompt_logprobs" in request:
            entries = [
                {str(i): {"logprob": v, "rank": 1, "decoded_token": t}}
                for i, v, t in zip(ids[1:], values, texts[1:], strict=True)
            ]
            return {"text": "x", "prompt_logprobs": [None, *entries]}
        if self.form.startswith("echo") and request.get("echo") and self.shifted:
            if ids[0] == tokenizer.bos_token_id:
                logprobs = {"tokens": [*texts[1:], "x"], "token_logprobs": [None, *values[1:], -1.0]}
            else:
                logprobs = {"tokens": texts, "token_logprobs": [None, *values[1:], -1.0]}
            return {"text": "".join(texts) + "x", "logprobs": logprobs}
        if self.form.startswith("echo") and request.get("echo"):
            logprobs = {"tokens": [*texts, "x"], "token_logprobs": [None, *values, -1.0]}
            return {"text": "".join(texts) + "x", "logprobs": logprobs}
        return {"text": "x", "logprobs": {"tokens": ["x"], "token_logprobs": [-1.0]}}


def prompts_of(request: dict[str, Any]) -> list[Any]:
    """The prompts of a request, each a text or token ids."""
    prompt = request["prompt"]
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


@contextmanager
def running_completions(lm: FrozenLM, **options: Any) -> Iterator[Completions]:
    """A server that runs until the block ends."""
    with Completions(lm, **options) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Completions

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        limit = self.server.lm.context_length
        self.answer({"data": [{"id": "tiny", "root": "models/tiny", "max_model_len": limit}, {"id": "other"}]})

    def do_POST(self) -> None:
        server, request = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            self.complete(request)
        finally:
            with server.lock:
                server.in_flight -= 1

    def complete(self, request: dict[str, Any]) -> None:
        server = self.server
        server.work(request)
        if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
            return self.answer({"error": {"message": "wrong key"}}, status=401)
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
        if fault == 0:
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault is not None:
            return self.answer({"error": {"message": "not now"}}, status=fault)
        choices = server.choices(request)
        if choices is None:
            return self.answer({"detail": "prompt: not a string"}, status=422)
        server.prompts.append(request["prompt"])
        return self.answer({"choices": choices})

    def answer(self, content: Any, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body)
