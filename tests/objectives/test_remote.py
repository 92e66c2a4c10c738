"""The LLM in another process: loss and gradient against one joint graph, and how either process ends."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.encoder.similarity import embed
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.remote import RemoteObjective
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night", "what makes the tides"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts."],
    ["Silk is spun by the larva of a moth.", "An owl hunts at night and hears a mouse."],
    ["The moon pulls the water of the sea.", "Bread rises."],
]


def dream(encoder: nn.Module, *, llm: str, micro_batch_size: int) -> DREAMLoss:
    """What a worker builds; also the objective in one process."""
    lm = FrozenLM.from_pretrained(llm, device="cpu")
    heads = HeadSet(((1, 2), (0, 3), (1, 0)), ((0.5,) * 4,) * 2, lm.name, lm.fingerprint, {})
    return DREAMLoss(encoder, lm, heads=heads, temperature=0.3, micro_batch_size=micro_batch_size)  # type: ignore[arg-type]


class OddObjective(Objective):
    """Two terms; fails, waits or ends its process when the labels say so."""

    def __init__(self, encoder: nn.Module, *, trained: bool = False) -> None:
        super().__init__(encoder, temperature=1.0)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.ones(1)) if trained else None
        self.lock = multiprocessing.RLock()  # a semaphore that outlives a worker that is killed, as tqdm has one

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        match int(labels["do"]):
            case 1:
                raise NLTError("do is 1; set it to 0")
            case 2:
                raise ZeroDivisionError("a mistake")
            case 3:
                os.kill(os.getpid(), signal.SIGKILL)
            case 4:
                time.sleep(600)
        return {"one": queries.square().sum() * self.temperature, "two": (queries @ documents[0].T).sum()}


def odd(encoder: nn.Module, *, trained: bool = False) -> OddObjective:
    return OddObjective(encoder, trained=trained)


@pytest.fixture(scope="module", params=[1, 2])
def remote(request: pytest.FixtureRequest, tiny_llm_folder: Path) -> Iterator[Callable[..., RemoteObjective]]:
    """DREAM in a worker with micro-batches of this size; the encoder and the temperature are set by each test."""
    build = functools.partial(dream, llm=str(tiny_llm_folder), micro_batch_size=request.param)
    objective = RemoteObjective(nn.Identity(), build, temperature=0.3)  # type: ignore[arg-type]

    def with_encoder(encoder: SentenceTransformer, temperature: float = 0.3) -> RemoteObjective:
        objective.model, objective.temperature = encoder, temperature
        return objective

    yield with_encoder
    objective.process.kill()


@pytest.fixture
def prompts(tiny_lm: FrozenLM) -> DocumentPrompts:
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(tokens, QUERIES, DOCUMENTS, target="query", context_length=256)


def features(encoder: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(QUERIES), encoder.preprocess([text for row in DOCUMENTS for text in row])]


@pytest.mark.parametrize("temperature", [0.3, 0.7])
def test_the_gradient_is_that_of_the_joint_graph(
    remote: Callable[..., RemoteObjective],
    tiny_encoder: SentenceTransformer,
    tiny_llm_folder: Path,
    prompts: DocumentPrompts,
    temperature: float,
) -> None:
    """Reference: one graph from the encoder's weights through the LLM of this process to the mean loss."""
    parameters = [p for p in tiny_encoder.parameters() if p.requires_grad]
    local = dream(tiny_encoder, llm=str(tiny_llm_folder), micro_batch_size=1)
    local.temperature = temperature
    scores = local.own_scores(*embed(tiny_encoder, features(tiny_encoder)))
    joint = local.read(scores.log_softmax(-1), prompts).mean()
    expected = torch.autograd.grad(3 * joint, parameters, materialize_grads=True)
    value = remote(tiny_encoder, temperature)(features(tiny_encoder), prompts.as_dict())["dream"]
    found = torch.autograd.grad(3 * value, parameters, materialize_grads=True)
    torch.testing.assert_close(value, joint, rtol=1e-5, atol=1e-6)
    largest = max(float(e.abs().max()) for e in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)
    assert largest > 1e-5


def test_without_a_graph_the_loss_is_the_same(
    remote: Callable[..., RemoteObjective], tiny_encoder: SentenceTransformer, prompts: DocumentPrompts
) -> None:
    """Reference: the loss with a graph."""
    expected = remote(tiny_encoder)(features(tiny_encoder), prompts.as_dict())["dream"]
    with torch.no_grad():
        found = remote(tiny_encoder)(features(tiny_encoder), prompts.as_dict())["dream"]
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert {id(p) for p in remote(tiny_encoder).parameters()} == {id(p) for p in tiny_encoder.parameters()}


def test_the_worker_says_what_its_llm_reads(
    remote: Callable[..., RemoteObjective], tiny_encoder: SentenceTransformer, tiny_llm_folder: Path
) -> None:
    """Reference: the batch of the same objective's collator in this process, which has the LLM."""
    rows = [{"query": query, "documents": texts} for query, texts in zip(QUERIES, DOCUMENTS, strict=True)]
    settings: dict[str, Any] = {"layout": "independent", "max_document_tokens": 5, "seed": 3}
    found = remote(tiny_encoder).collator(rows, **settings)(rows)
    expected = dream(tiny_encoder, llm=str(tiny_llm_folder), micro_batch_size=1).collator(rows, **settings)(rows)
    assert set(found) == set(expected)
    assert "prompt_ids" in found
    for name, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.fixture(scope="module")
def worker() -> Iterator[RemoteObjective]:
    objective = RemoteObjective(nn.Identity(), odd, temperature=1.0)  # type: ignore[arg-type]
    assert objective.llm_texts == LLMTexts()
    yield objective
    objective.process.kill()


EMBEDDINGS = torch.arange(4.0).reshape(2, 2), torch.ones(2, 3, 2)


def test_each_term_has_its_own_gradient(worker: RemoteObjective) -> None:
    """Reference: the derivatives by hand; a term without the documents has none with respect to them."""
    queries, documents = (t.clone().requires_grad_() for t in EMBEDDINGS)
    worker.temperature = 2.0
    terms = worker.compute_loss_from_embeddings(queries, documents, {"do": torch.tensor(0)})
    assert {name: value.item() for name, value in terms.items()} == {"one": 2 * 14.0, "two": 18.0}
    by_query, by_document = torch.autograd.grad(terms["one"] + 0.5 * terms["two"], (queries, documents))
    torch.testing.assert_close(by_query, 2 * 2 * queries.detach() + 0.5 * 3)
    torch.testing.assert_close(by_document[0], 0.5 * queries.detach().sum(0).expand(3, 2))
    assert by_document[1].abs().max() == 0


def test_an_error_in_the_worker_is_raised_here_and_the_worker_goes_on(worker: RemoteObjective) -> None:
    """Reference: the kind and text of each error; the next call is answered."""
    with pytest.raises(NLTError, match=r"^do is 1; set it to 0$"):
        worker.compute_loss_from_embeddings(*EMBEDDINGS, {"do": torch.tensor(1)})
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError in the LLM's process:.*test_remote.py.*a mistake"):
        worker.compute_loss_from_embeddings(*EMBEDDINGS, {"do": torch.tensor(2)})
    assert set(worker.compute_loss_from_embeddings(*EMBEDDINGS, {"do": torch.tensor(0)})) == {"one", "two"}


def test_a_dead_worker_is_reported(worker: RemoteObjective) -> None:
    """Reference: the exit code and the remedy, when it dies amid a call and when it is dead already."""
    for _ in range(2):
        with pytest.raises(NLTError, match=r"has ended with exit code -9 .*lm_micro_batch_size, or set llm_process"):
            worker.compute_loss_from_embeddings(*EMBEDDINGS, {"do": torch.tensor(3)})


def test_what_cannot_be_built_is_refused() -> None:
    """Reference: the message of the worker's own error."""
    with pytest.raises(NLTError, match="trains weight, which no optimizer reaches there; set llm_process: false"):
        RemoteObjective(nn.Identity(), functools.partial(odd, trained=True), temperature=1.0)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("what", ["ends", "is killed while the worker computes"])
def test_the_worker_ends_with_its_parent(what: str) -> None:
    """Reference: the process table after the parent is gone; neither warns of anything."""
    command = [sys.executable, __file__, what]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pid = int(parent.stdout.readline())
        if "killed" in what:
            assert alive(pid)
            parent.kill()
        else:
            assert parent.stderr.read() == ""
        parent.wait(timeout=300)
        deadline = time.monotonic() + 60
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not alive(pid)


if __name__ == "__main__":
    started = RemoteObjective(nn.Identity(), odd, temperature=1.0)  # type: ignore[arg-type]
    print(started.process.pid, flush=True)
    if sys.argv[1] == "is killed while the worker computes":
        started.compute_loss_from_embeddings(*EMBEDDINGS, {"do": torch.tensor(4)})
    started.compute_loss_from_embeddings(*EMBEDDINGS, {"do": torch.tensor(0)})
