"""One copy of an LLM's weights for two models: the frozen LLM, and an encoder that is a LoRA adapter on it."""

from __future__ import annotations

from transformers import PreTrainedModel

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM


def share_weights(model: PreTrainedModel, lm: FrozenLM) -> None:
    """Let a model without weights use the memory of the LLM's weights, all of them frozen.

    The two models remain two trees of modules over one set of tensors. Adapters, dropout, attention implementation,
    caches and checkpointing belong to one tree. The LLM therefore always reads without the encoder's adapter, even
    after an exception, and nothing has to be switched. Moving one of the models to another device or dtype gives it
    weights of its own, which costs memory and changes no result.

    Args:
        model: the LLM's decoder without its head, on the meta device, without adapters.
        lm: the LLM, on the device on which both are to stay.

    Raises:
        NLTError: the model is not of the class that the LLM's own decoder has.
    """
    body = lm.model.base_model
    if type(model) is not type(body):
        raise NLTError(
            f"LLM {lm.name!r} has a {type(body).__name__} under its head, and as an encoder it is a "
            f"{type(model).__name__}; set shared_backbone: false"
        )
    model.load_state_dict(body.state_dict(), assign=True)
    for name, buffer in body.named_buffers():  # also buffers that no state dict has, such as rotary frequencies
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, buffer)
    model.requires_grad_(False)
