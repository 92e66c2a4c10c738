"""Workers of Ray: results of blocks, lost workers, errors, and models that are forgotten."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlt_trainer import ray_workers as ray_workers_module
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.ray_workers import LOSSES, RayWorkers, Worker

ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it


def doubled(folder: Path) -> Callable[[int], int]:
    """A function that leaves a file when it is made, and another for each call."""
    (folder / f"made-{os.getpid()}-{uuid.uuid4().hex}").touch()

    def compute(number: int) -> int:
        (folder / f"{number}-{os.getpid()}").touch()
        return 2 * number

    return compute


def killed_once(folder: Path, *, times: int = 1) -> Callable[[int], int]:
    """A function that kills its process at block 3, as often as it is told."""

    def compute(number: int) -> int:
        killed = len([*folder.glob("killed-*")])
        if number == 3 and killed < times:
            (folder / f"killed-{killed}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number

    return compute


def refusing(error: Exception) -> Callable[[int], int]:
    def compute(number: int) -> int:
        raise error

    return compute


def failing_disk() -> Callable[[int], int]:
    def compute(number: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "file")

    return compute


@pytest.fixture
def workers(ray_workers: RayWorkers) -> RayWorkers:
    return ray_workers


def test_each_block_is_computed_once_by_functions_that_are_made_once(workers: RayWorkers, tmp_path: Path) -> None:
    task = workers.task(partial(doubled, tmp_path))
    assert dict(task.results(range(20))) == {number: 2 * number for number in range(20)}
    assert dict(task.results(range(20, 25))) == {number: 2 * (number + 20) for number in range(5)}
    made = [path.name.split("-")[1] for path in tmp_path.glob("made-*")]
    calls = [path.name.split("-") for path in tmp_path.iterdir() if not path.name.startswith("made")]
    assert len(calls) == 25
    assert len(made) == len({*made}) <= workers.number  # a worker that starts late may find nothing left
    assert {process for _, process in calls} == {*made}
    assert str(os.getpid()) not in made
    assert [*task.results([])] == []


def test_blocks_are_made_while_others_are_computed(workers: RayWorkers, tmp_path: Path) -> None:
    """Reference: at most as many blocks as workers are ahead of the results, so that few are in memory."""
    made = 0

    def blocks() -> Iterator[int]:
        nonlocal made
        for number in range(12):
            made += 1
            yield number

    for seen, _ in enumerate(workers.task(partial(doubled, tmp_path)).results(blocks()), start=1):
        assert made <= seen + workers.number


def test_the_block_of_a_lost_worker_is_computed_again(workers: RayWorkers, tmp_path: Path) -> None:
    found = dict(workers.task(partial(killed_once, tmp_path)).results(range(8)))
    assert found == {number: 2 * number for number in range(8)}
    assert (tmp_path / "killed-0").is_file()
    assert dict(workers.task(partial(doubled, tmp_path)).results(range(4))) == {n: 2 * n for n in range(4)}


def test_a_block_that_loses_every_worker_is_given_up(workers: RayWorkers, tmp_path: Path) -> None:
    with pytest.raises(NLTError, match=rf"^{LOSSES} workers of Ray were lost while they computed one block.*memory"):
        dict(workers.task(partial(killed_once, tmp_path, times=LOSSES)).results(range(8)))
    assert dict(workers.task(partial(doubled, tmp_path)).results(range(4))) == {n: 2 * n for n in range(4)}


@pytest.mark.parametrize("error", [NLTError("a text is too long; shorten it"), DataError("file", "is empty", line=3)])
def test_an_error_of_a_worker_is_that_of_one_process(workers: RayWorkers, error: NLTError) -> None:
    with pytest.raises(NLTError, match=f"^{error}$") as found:
        dict(workers.task(partial(refusing, error)).results(range(4)))
    assert type(found.value) is type(error)


def test_an_error_of_the_file_system_keeps_its_number(workers: RayWorkers) -> None:
    """Reference: the number, by which a program knows the remedy."""
    with pytest.raises(OSError) as found:
        dict(workers.task(failing_disk).results(range(4)))
    assert found.value.errno == errno.ENOSPC


def test_ray_leaves_the_programs_own_handler_of_sigterm(workers: RayWorkers) -> None:
    """Reference: the handler of this process before Ray starts, in a process of its own."""
    code = """if True:
        import signal
        from nlt_trainer.program import terminate
        from nlt_trainer.ray_workers import connected
        signal.signal(signal.SIGTERM, terminate)
        connected(None)
        assert signal.getsignal(signal.SIGTERM) is terminate
    """
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "RAY_ADDRESS": ""})


class NodeOfMany:
    """Stands in for Ray: a start takes longer than a block, and block 3 longest, with which node and workers die."""

    def __init__(self) -> None:
        self.exceptions = ray.exceptions
        self.answers: dict[str, tuple[str, Callable[[], Any]]] = {}
        self.starts, self.slow = set[str](), ""
        self.dead: set[str] = set()

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[type[Worker]], Any]:
        return lambda kind: SimpleNamespace(remote=self.worker)

    def worker(self) -> Any:
        name = f"worker {len(self.answers)}"

        def call(compute: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *given: self.call(name, compute, *given))

        return SimpleNamespace(
            name=name,
            version=call(lambda: version("nlt_trainer")),
            compute=call(lambda function, make, block: make[0]()(block)),
            forget=call(lambda function: None),
        )

    def call(self, worker: str, compute: Callable[..., Any], *given: Any) -> str:
        reference = f"answer {len(self.answers)}"
        self.answers[reference] = worker, lambda: compute(*given)
        if not given:
            self.starts.add(reference)
        if not self.slow and given and given[-1] == 3:
            self.slow = reference
        return reference

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        first, *others = sorted(references, key=lambda reference: (reference == self.slow, reference in self.starts))
        return [first], others

    def get(self, reference: str) -> Any:
        if reference == self.slow:
            self.dead |= {worker for worker, _ in self.answers.values()}
        worker, compute = self.answers[reference]
        if worker in self.dead:
            raise self.exceptions.ActorDiedError
        return compute()

    def kill(self, worker: Any) -> None:
        self.dead.add(worker.name)


def test_a_node_with_many_workers_costs_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the results; more idle workers die with a node, and then all of them, than one block may lose."""
    node = NodeOfMany()
    monkeypatch.setattr(ray_workers_module, "connected", lambda address: node)
    workers = RayWorkers(number=8)
    assert dict(workers.task(partial(doubled, tmp_path)).results(range(20))) == {n: 2 * n for n in range(20)}
    assert len(node.dead) == 8 > LOSSES
    node.dead |= {worker.name for worker in workers.idle}
    assert dict(workers.task(partial(doubled, tmp_path)).results(range(1))) == {0: 0}


def test_a_node_takes_all_workers_with_it_that_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the result; more workers are lost at their start than one after another may be."""
    node = NodeOfMany()
    monkeypatch.setattr(ray_workers_module, "connected", lambda address: node)
    task = RayWorkers(number=8).task(partial(doubled, tmp_path))
    node.dead |= {worker for worker, _ in node.answers.values()}
    assert dict(task.results(range(2))) == {0: 0, 1: 2}


@pytest.mark.parametrize(("use_cpu", "gpus", "number"), [(False, 1, 2), (True, 0, 8)])
def test_workers_have_gpus_unless_the_recipe_wants_none(
    monkeypatch: pytest.MonkeyPatch, use_cpu: bool, gpus: int, number: int
) -> None:
    """Reference: the places of the cluster."""
    cluster = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(ray_workers_module, "connected", lambda address: cluster)
    workers = RayWorkers(use_cpu=use_cpu)
    assert (workers.gpus, workers.number) == (gpus, number)


def test_a_worker_forgets_what_nobody_can_ask_for(workers: RayWorkers, tmp_path: Path) -> None:
    """Reference: the functions that workers hold, by their names."""
    task = workers.task(partial(doubled, tmp_path))
    dict(task.results(range(8)))
    name, other = task.name, workers.task(held_names)
    assert any(name in names for names in dict(other.results(range(8))).values())
    del task
    assert not any(name in names for names in dict(other.results(range(8))).values())


def held_names() -> Callable[[int], list[str]]:
    """The names of the functions that the worker holds in which it runs."""

    def compute(_: int) -> list[str]:
        return [name for found in gc.get_objects() if isinstance(found, Worker) for name in found.functions]

    return compute


@pytest.mark.parametrize("address", ["127.0.0.1:1", "head", "head:port", "127.0.0.1:99999"])
@pytest.mark.parametrize("variable", [False, True])
def test_a_cluster_that_does_not_answer_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: bool
) -> None:
    """Reference: the address, without any call of Ray, which would try for a quarter of an hour."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    monkeypatch.setenv("RAY_ADDRESS", address if variable else "")
    given = "auto" if variable else address
    with pytest.raises(NLTError, match=f"^ray_address '{given}': no cluster of Ray answers at '{address}' "):
        ray_workers_module.connected(given)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        NLTError, match=r"^engine: ray needs Ray, which is not installed; pip install 'nlt_trainer\[ray\]'$"
    ):
        RayWorkers()


def test_ray_is_not_imported_by_the_package() -> None:
    """Reference: the modules of a new process that has imported everything which knows of Ray."""
    code = "import sys, nlt_trainer.assembly.scoring, nlt_trainer.assembly.mining; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
