"""An objective whose LLM lives in a process of its own: embeddings go there, losses and their gradients come back."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.micro_batched_loss import with_known_gradients
from nlt_trainer.objectives.objective import Objective

GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that make a process one of several that train. The worker is none of them and unsets these."""


class RemoteObjective(Objective):
    """An objective that is computed in a worker process, which holds the LLM.

    The LLM needs nothing from the encoder but the embeddings of a batch. These go to the worker as plain arrays,
    together with the labels. Each term and its gradient with respect to the embeddings come back, and one backward
    pass of the encoder goes on from there. The gradient is therefore that of one joint graph.

    The worker is started by `spawn`, reads nothing but what `build` reads, and ends with this process, even when this
    process is killed. Each of several training processes has a worker of its own, which knows nothing of the others.
    An objective that exchanges documents among processes therefore sees only those of its own process. So far this has
    not been run with an encoder or an LLM on an accelerator.

    Inputs: those of the objective that `build` makes; the collator tokenises for its LLM in this process.

    Args:
        model: the encoder; it stays in this process.
        build: makes the objective in the worker, given a module that stands for the encoder. It is pickled by name: a
            function of a module, or a `functools.partial` of one.
        temperature: of the encoder's cosines; at each call the worker uses the value that this object has then.

    When to use it: where the LLM should have threads, memory or a device of its own. Relation to its siblings: in one
    process the same objective gives the same loss and gradient.

    Raises:
        NLTError: the worker cannot make the objective, or the objective trains parameters of its own.

    Example:
        ```python
        build = functools.partial(load_dream, llm="HuggingFaceTB/SmolLM2-135M-Instruct", device="cuda:1")
        loss = RemoteObjective(encoder, build, temperature=0.05)
        ```
    """

    def __init__(
        self, model: SentenceTransformer, build: Callable[[nn.Module], Objective], *, temperature: float
    ) -> None:
        super().__init__(model, temperature=temperature)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build), daemon=True)
        self.process.start()
        self._lm_tokens = 0
        atexit.register(_end, self.connection, self.process)
        theirs.close()  # only the worker then holds that end, so this process notices when the worker dies
        self._llm_texts: LLMTexts = self._receive()

    @property
    def lm_tokens(self) -> int:
        return self._lm_tokens

    @property
    def llm_texts(self) -> LLMTexts:
        return self._llm_texts

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        arrays = [_array(queries), _array(documents), {name: _array(value) for name, value in labels.items()}]
        try:
            self.connection.send((*arrays, self.temperature, torch.is_grad_enabled()))
        except OSError:
            pass  # the worker has ended; `_receive` says how
        terms, self._lm_tokens = self._receive()
        return {
            name: with_known_gradients(
                torch.tensor(value, device=queries.device),
                [torch.from_numpy(g) for g in gradients],
                queries,
                documents,
            )
            for name, (value, gradients) in terms.items()
        }

    def _receive(self) -> Any:
        """Wait for the worker's next answer.

        Raises:
            NLTError: the worker has ended, or its input was wrong.
            RuntimeError: an error in the worker, with its traceback.
        """
        try:
            error, answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(timeout=10)
            raise NLTError(
                f"the LLM's process has ended with exit code {self.process.exitcode} (-9: it was killed, mostly for "
                "want of memory); use a smaller LLM or lm_micro_batch_size, or set llm_process: false"
            ) from None
        if error == NLTError.__name__:
            raise NLTError(answer)
        if error is not None:
            raise RuntimeError(f"{error} in the LLM's process:\n{answer}")
        return answer


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _end(connection: Connection, process: SpawnProcess) -> None:
    """Let the worker leave by itself when this process ends, so that it frees its semaphores."""
    connection.close()
    process.join(timeout=30)


def _serve(connection: Connection, build: Callable[[nn.Module], Objective]) -> None:
    """The worker's program: it answers `(None, answer)` or `(error's name, message)` until the other end is closed."""
    for name in GROUP_VARIABLES:
        os.environ.pop(name, None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        error, made = _attempt(_build, build)
        if error is not None:
            connection.send((error, made))
            return
        objective, texts = made
        connection.send((None, texts))
        while True:
            connection.send(_attempt(_compute, objective, connection.recv()))
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the training process has ended


def _end_with_parent() -> None:
    """End at once when the parent has ended, even in the middle of a computation."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt(function: Callable[..., Any], *arguments: Any) -> tuple[str | None, Any]:
    try:
        return None, function(*arguments)
    except NLTError as error:
        return NLTError.__name__, str(error)
    except Exception as error:  # the training process reports it
        return type(error).__name__, traceback.format_exc()


def _build(build: Callable[[nn.Module], Objective]) -> tuple[Objective, LLMTexts]:
    """Build the objective. The training process needs its `LLMTexts` to build what the LLM reads of a batch."""
    objective = build(nn.Identity())
    if names := [name for name, _ in objective.named_parameters()]:
        raise NLTError(f"the objective trains {names[0]}, which no optimizer reaches there; set llm_process: false")
    return objective, objective.llm_texts


def _compute(objective: Objective, request: tuple[Any, ...]) -> tuple[dict[str, tuple[float, list[np.ndarray]]], int]:
    """Each term with its gradients with respect to queries and documents, if these are wanted, and the LLM tokens."""
    queries, documents, labels, objective.temperature, wanted = request
    queries, documents = (torch.from_numpy(array).requires_grad_(wanted) for array in (queries, documents))
    tensors = {name: torch.from_numpy(array) for name, array in labels.items()}
    with torch.set_grad_enabled(wanted):
        terms = objective.compute_loss_from_embeddings(queries, documents, tensors)
    embeddings = (queries, documents)
    gradients = {
        name: torch.autograd.grad(term, embeddings, retain_graph=True, materialize_grads=True) if wanted else ()
        for name, term in terms.items()
    }
    answer = {name: (term.item(), [g.numpy() for g in gradients[name]]) for name, term in terms.items()}
    return answer, objective.lm_tokens
