"""Train an encoder through an LLM without one large graph of both.

The encoder gives the LLM only a few numbers. The LLM's gradient with respect to these is computed first, in
micro-batches, and one backward pass of the encoder goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def micro_batched_loss(
    read: Callable[[Tensor, slice], Tensor],
    weights: Tensor,
    *,
    micro_batch_size: int,
    device: torch.device,
    parameters: Sequence[Tensor] = (),
) -> Tensor:
    """Mean over B queries of a loss that an LLM computes from weights, as if in one graph.

    The graph of only one micro-batch is alive at a time. The gradients with respect to `weights` and `parameters` are
    known when this returns, and the backward pass only hands them on.

    Args:
        read: from weights `(b, ...)` on the LLM's device and their place in the batch to losses `(b,)`.
        weights: `(B, ...)`, the numbers that the encoder gives to the LLM.
        micro_batch_size: queries in one call of `read`.
        device: of the LLM.
        parameters: other parameters that are trained, on the LLM's device; each must take part in every loss.
    """
    leaf = weights.detach().to(device).requires_grad_(torch.is_grad_enabled())
    inputs = [leaf, *parameters]
    totals = [torch.zeros_like(tensor) for tensor in inputs]
    losses = []
    for start in range(0, len(weights), micro_batch_size):
        part = slice(start, start + micro_batch_size)
        with torch.autocast(device.type, enabled=False):  # the LLM runs in its own dtype, whatever the encoder's
            loss = read(leaf[part], part)  # (b,)
        losses.append(loss.detach())
        if leaf.requires_grad:
            # Only this micro-batch's graph is alive, and it is freed here.
            for total, gradient in zip(totals, torch.autograd.grad(loss.sum(), inputs), strict=True):
                total += gradient
    value = torch.cat(losses).mean().to(weights.device)
    if not leaf.requires_grad:
        return value
    return with_known_gradients(value, [total / len(weights) for total in totals], weights, *parameters)


def with_known_gradients(loss: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
    """A scalar whose gradient with respect to each input is the given one; without gradients, the scalar itself."""
    return _KnownGradient.apply(loss, gradients, *inputs) if gradients else loss


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradients with respect to its inputs are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*(gradient.to(x) for gradient, x in zip(gradients, inputs, strict=True)))
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(upstream.to(gradient) * gradient for gradient in ctx.saved_tensors)
