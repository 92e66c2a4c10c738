"""Scoring by an LLM on a server against the simplest client that sends the same prompts: what our client costs.

```bash
python tests/benchmarks/remote_scoring.py
python tests/benchmarks/remote_scoring.py --server http://127.0.0.1:8000/v1 --llm_tokenizer FOLDER
```

Both clients have as many prompts in flight. Ours makes prompts of texts, checks the tokens of each answer and writes
the score into a cache, as `nlt score` does, with several prompts in a request where the server answers them, and once
more with one. The other one sends bytes that were made before, one prompt in a request, and reads the answer.

Without `--server` that of the tests, in a process of its own, answers each request after a wait, while it has places
for its prompts. Others wait in a queue, as they do at every server that is busy. It has computed its answers before,
so that it takes little of the machine. N places and W seconds stand for a server of `N / W` pairs a second. The
processor time of a pair says how many pairs a second one core can send, whatever else the machine does.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from threading import local
from typing import Any
from urllib.parse import urlsplit

from measuring import LLM, collection_at, in_turn, parser, ratio, record, show

from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.lm.candidate_pairs import CandidatePairs
from nlt_trainer.lm.completion_server import CompletionServer
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.remote_scoring import RemoteScorer

sys.path.insert(0, str(Path(__file__).parents[1]))  # the server and its LLM, which are imported where they are used


def serve(llm: str, seconds: float, at_once: int, address: Connection) -> None:
    """Answer each prompt after some seconds, and compute it at its first time, until the process is ended."""
    from completions import running_completions

    with running_completions(
        FrozenLM.from_pretrained(llm, device="cpu"), seconds=seconds, at_once=at_once, most_prompts=64
    ) as server:
        answers: dict[str, Any] = {}
        compute = server.choice

        def choice(request: dict[str, Any]) -> dict[str, Any] | None:
            key = json.dumps(request["prompt"])
            if key not in answers:
                answers[key] = compute(request)
            return answers[key]

        server.choice = choice  # type: ignore[method-assign]
        address.send(server.url)
        address.recv()


@contextmanager
def running_server(llm: str, seconds: float, at_once: int) -> Iterator[str]:
    """The address of a server in a process of its own, which runs until the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(llm, seconds, at_once, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(timeout=30)


def simplest(url: str, bodies: Sequence[bytes], *, requests: int) -> int:
    """Send bodies with so many threads, each on a connection of its own; returns the bytes of all answers."""
    address, thread = urlsplit(url), local()

    def send(body: bytes) -> int:
        if not hasattr(thread, "connection"):
            thread.connection = HTTPConnection(address.netloc)
        thread.connection.request("POST", f"{address.path}/completions", body, {"Content-Type": "application/json"})
        answer = thread.connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return len(content)

    with ThreadPoolExecutor(requests) as threads:
        return sum(threads.map(send, bodies))


class Recorded(RemoteScorer):
    """A scorer that keeps the prompts that it makes."""

    def prompts(self, pairs: CandidatePairs) -> list[bytes]:
        """The bodies of the requests for some pairs."""
        request = {"model": self.server.model, "max_tokens": 1, "temperature": 0}
        made = (self._prompt(pair)[0] for pair in pairs)
        if self.server.reads_ids:
            return [json.dumps({**request, "prompt": prompt.ids, "prompt_logprobs": 0}).encode() for prompt in made]
        return [json.dumps({**request, "prompt": p.text, "echo": True, "logprobs": 1}).encode() for p in made]


def measured(url: str, options: Any) -> dict[str, Any]:
    """Seconds of both clients in turn, and their rates."""
    collection = collection_at(options.collection)
    queries = list(collection.queries.values())[: options.queries]
    mined = mine_candidates(collection, queries, num_candidates=options.candidates)
    documents = [[collection.corpus[d].content for d in c.document_ids] for c in mined]
    pairs = CandidatePairs([c.query for c in mined], documents, [None] * len(mined))

    def scorer(folder: str, *, prompts: int | None = None) -> Recorded:
        made = Recorded(
            CompletionServer(url, model=None), tokenizer=options.llm_tokenizer, target="query",
            max_document_tokens=options.max_document_tokens, requests=options.requests, cache_folder=folder,
        )  # fmt: skip
        made.server.prompts = prompts or made.server.prompts
        return made

    with tempfile.TemporaryDirectory() as folder:
        scorers = iter([scorer(f"{folder}/{run}") for run in range(options.runs)])
        single = iter([scorer(f"{folder}/single-{run}", prompts=1) for run in range(options.runs)])
        bodies = list(dict.fromkeys(scorer(folder).prompts(pairs)))
        simplest(url, bodies, requests=options.requests)  # the server computes its answers

        def processor_time(call: Callable[[], Any]) -> float:
            begin = time.process_time()
            call()
            return time.process_time() - begin

        cases = {
            "ours": lambda: processor_time(lambda: next(scorers).log_likelihood(pairs)),
            "one prompt a request": lambda: processor_time(lambda: next(single).log_likelihood(pairs)),
            "simplest": lambda: processor_time(partial(simplest, url, bodies, requests=options.requests)),
        }
        seconds, processor = in_turn(cases, runs=options.runs)
    rates = {name: len(bodies) / statistics.median(values) for name, values in seconds.items()}
    spent = {name: 1000 * statistics.median(values) / len(bodies) for name, values in processor.items()}
    return {
        "in flight": options.requests,
        "pairs": len(bodies),
        "ours, pairs/s": rates["ours"],
        "with one prompt a request, pairs/s": rates["one prompt a request"],
        "simplest client, pairs/s": rates["simplest"],
        **ratio(seconds["simplest"], seconds["ours"]),
        "ours, ms of a core a pair": spent["ours"],
        "with one prompt a request, ms of a core a pair": spent["one prompt a request"],
        "simplest client, ms of a core a pair": spent["simplest"],
    }


def main(argv: list[str] | None = None) -> None:
    """Measure both clients against a server, and print one row."""
    flags = parser(__doc__)
    flags.add_argument("--server", help="address of a server; unset: the server of the tests")
    flags.add_argument("--llm_tokenizer", default=LLM, help="the tokenizer of the server's model")
    flags.add_argument("--seconds", type=float, default=0.25, help="that the server of the tests takes for an answer")
    flags.add_argument("--at_once", type=int, default=32, help="places of the server of the tests")
    flags.add_argument("--collection", type=Path, help="BEIR folder; unset: the standard library")
    flags.add_argument("--queries", type=int, default=160)
    flags.add_argument("--candidates", type=int, default=8)
    flags.add_argument("--max_document_tokens", type=int, default=192)
    flags.add_argument("--requests", type=int, default=64)
    options = flags.parse_args(argv)
    if options.server is not None:
        row = measured(options.server, options)
    else:
        from tiny import save_llm

        with tempfile.TemporaryDirectory() as folder:
            save_llm(Path(folder))
            options.llm_tokenizer = folder
            with running_server(folder, options.seconds, options.at_once) as url:
                row = {
                    "places of the server": options.at_once,
                    "its seconds": options.seconds,
                    **measured(url, options),
                }
    show([row])
    record(options.json, "remote_scoring", {"remote_scoring_ratio": row["ratio"]}, row)


if __name__ == "__main__":
    main()
