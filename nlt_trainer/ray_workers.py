"""Workers of Ray, on this machine or on a cluster, which each hold models and compute blocks of work with them.

Ray starts the workers, moves blocks and results between nodes, and finds out which workers are lost. A block whose
worker was lost is computed again by another one. Blocks are made one after another while earlier ones are computed, so
that few of them are in memory, and none is written anywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import socket
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from nlt_trainer.errors import NLTError
from nlt_trainer.terminal import say

Block = TypeVar("Block")
Result = TypeVar("Result")
Numbered = tuple[int, Any]
"""A block with its number."""
Flying = dict[Any, tuple[Any, Numbered | None]]
"""What workers do: a reference to the answer -> the worker, and its block, or `None` while it starts."""

LOSSES = 5
"""Workers that are lost with one block, or at their start, after which Ray is asked for no more."""
PATIENCE = 60
"""Seconds without an answer after which a line says how many workers are missing."""
REACHED_IN = 10
"""Seconds in which a cluster must take a connection. Ray itself tries for a quarter of an hour."""


class RayWorkers:
    """A number of workers, each with a CPU core and, where the cluster has GPUs, one of these.

    Ray is started, or its cluster joined, when there is a first task.

    Args:
        address: of a cluster, as `ray.init` takes it: `auto` means the one that this machine belongs to. `None` starts
            Ray on this machine alone.
        number: of workers; `None` means one for each GPU of the cluster or, without GPUs, for each CPU core.
        use_cpu: whether no worker gets a GPU, although the cluster has some.

    Raises:
        NLTError: Ray is not installed.
    """

    def __init__(self, *, address: str | None = None, number: int | None = None, use_cpu: bool = False) -> None:
        if importlib.util.find_spec("ray") is None:
            raise NLTError("engine: ray needs Ray, which is not installed; pip install 'nlt_trainer[ray]'")
        self.address, self.asked, self.use_cpu = address, number, use_cpu
        self.idle: list[Any] = []
        self.starting: Flying = {}

    @cached_property
    def ray(self) -> Any:
        """The module `ray`, connected to the cluster.

        Raises:
            NLTError: the cluster cannot be reached.
        """
        return connected(self.address)

    @cached_property
    def gpus(self) -> int:
        """Number of GPUs of each worker."""
        return 1 if not self.use_cpu and self.ray.cluster_resources().get("GPU", 0) >= 1 else 0

    @cached_property
    def number(self) -> int:
        """Number of workers."""
        return self.asked or max(1, int(self.ray.cluster_resources().get("GPU" if self.gpus else "CPU", 1)))

    def task(self, make: Callable[[], Callable[[Block], Result]]) -> RayTask[Block, Result]:
        """A task for these workers, see `RayTask`.

        Raises:
            NLTError: the cluster cannot be reached.
        """
        if not self.idle and not self.starting:
            for _ in range(self.number):
                self.start(self.starting)
        return RayTask(self, make)

    def start(self, flying: Flying) -> None:
        """Ask Ray for a worker, which may have no place for it yet."""
        worker = self.ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(Worker).remote()
        flying[worker.version.remote()] = worker, None

    def answer(self, flying: Flying) -> tuple[Numbered | None, Any]:
        """Wait for a worker, which is idle then; if it is lost, another one is started.

        Returns:
            Its block, `None` where it has started, and the block's result or the error by which it was lost.

        Raises:
            NLTError: the worker raises it, or has another version of this package.
        """
        while not (done := self.ray.wait([*flying], timeout=PATIENCE)[0]):
            if waiting := sum(block is None for _, block in flying.values()):
                say(f"{waiting} of {self.number} workers of Ray have no place on the cluster yet, or still start")
        worker, block = flying.pop(done[0])
        try:
            found = self.ray.get(done[0])
        except self.ray.exceptions.RayTaskError as error:
            self.idle.append(worker)
            raise error.cause if isinstance(error.cause, NLTError | OSError) else error from None
        except self.ray.exceptions.RayError as error:
            for lost in [worker, *(idle for idle in self.idle if not self._lives(idle))]:  # of the same node
                self.idle = [idle for idle in self.idle if idle is not lost]
                self.ray.kill(lost)  # one that is only out of reach would keep its place
                self.start(flying)
            return block, error
        if block is None and found != version("nlt_trainer"):
            raise NLTError(
                f"a worker of Ray has version {found} of nlt_trainer, and this machine has {version('nlt_trainer')}; "
                "install one version on all nodes"
            )
        self.idle.append(worker)
        return block, found

    def _lives(self, worker: Any) -> bool:
        try:
            self.ray.get(worker.version.remote())
        except self.ray.exceptions.RayError:
            return False
        return True


class RayTask(Generic[Block, Result]):
    """A function of a block that workers compute. They forget it when this object is gone.

    Args:
        workers: the workers.
        make: is called in each worker once, and makes the function there. It is pickled, with what it holds.
    """

    def __init__(self, workers: RayWorkers, make: Callable[[], Callable[[Block], Result]]) -> None:
        self.workers, self.name, self.make = workers, uuid.uuid4().hex, workers.ray.put(make)
        weakref.finalize(self, _forget, workers, self.name).atexit = False

    def results(self, blocks: Iterable[Block]) -> Iterator[tuple[int, Result]]:
        """Yield the number of each block, which counts from 0, with its result, as results come.

        Raises:
            NLTError: a worker raises it, a block is given up, or workers do not start.
        """
        workers, numbered = self.workers, enumerate(blocks)
        again, losses = list[Numbered](), Counter[int | None]()
        flying, workers.starting = workers.starting, {}

        def send() -> None:
            """Give every idle worker a block, as long as there are any."""
            while workers.idle and (block := again.pop() if again else next(numbered, None)) is not None:
                worker = workers.idle.pop()
                flying[worker.compute.remote(self.name, [self.make], block[1])] = worker, block

        try:
            send()
            while any(block for _, block in flying.values()) or again or not workers.idle:
                block, found = workers.answer(flying)
                if isinstance(found, Exception):
                    number = None if block is None else block[0]
                    losses[number] += 1
                    _check_losses(losses[number], found, starting=workers.number if block is None else 0)
                    again += [] if block is None else [block]
                elif block is None:
                    del losses[None]
                send()  # before the result is used, so that no worker waits for that
                if block is not None and not isinstance(found, Exception):
                    yield block[0], found
        finally:
            workers.starting = {reference: job for reference, job in flying.items() if job[1] is None}
            workers.idle += [worker for worker, block in flying.values() if block is not None]


class Worker:
    """What runs in a worker: functions by their names, each of which is made when it is first needed."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[[Any], Any]] = {}

    def version(self) -> str:
        """The version of this package."""
        return version("nlt_trainer")

    def compute(self, name: str, make: list[Any], block: Any) -> Any:
        """Compute a block with a function, which is made by what the one reference in a list refers to."""
        if name not in self.functions:
            self.functions[name] = connected(None).get(make[0])()
        return self.functions[name](block)

    def forget(self, name: str) -> None:
        """Free what a function holds."""
        self.functions.pop(name, None)


def connected(address: str | None) -> Any:
    """The module `ray`, connected to a cluster; a process stays with the one that it was connected to first.

    Raises:
        NLTError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics to Ray's authors
    ray = importlib.import_module("ray")
    if not ray.is_initialized():
        _check_answers(address)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise NLTError(f"ray_address {address!r}: no cluster of Ray can be reached there: {error}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray replaces it, and training writes a checkpoint by it
    return ray


def _check_answers(address: str | None) -> None:
    """Raise `NLTError` unless HOST:PORT takes a connection; other forms of an address are left to Ray."""
    place = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    if place in (None, "local", "auto") or "://" in str(place):
        return
    host, _, port = str(place).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_IN).close()
    except (OSError, OverflowError, ValueError) as error:
        raise NLTError(
            f"ray_address {address!r}: no cluster of Ray answers at {place!r} ({error}); give HOST:PORT of its head, "
            "such as 10.0.0.1:6379, or auto on one of its nodes"
        ) from error


def _check_losses(number: int, error: Exception, *, starting: int) -> None:
    """Raise `NLTError` if too many workers were lost with one block, or at their start.

    Args:
        number: of those that were lost.
        error: the last one's.
        starting: number of workers that start together, which one node can take with it; 0 for the losses of a block.
    """
    if number < LOSSES + max(0, starting - 1):
        return
    when = "at their start" if starting else "while they computed one block"
    raise NLTError(
        f"{number} workers of Ray were lost {when}, the last one with: {' '.join(str(error).split())}; they may need "
        "more memory, which fewer of them have (ray_workers)"
    )


def _forget(workers: RayWorkers, name: str) -> None:
    for worker in workers.idle if workers.ray.is_initialized() else []:
        worker.forget.remote(name)
