"""LoRA adapters: merge an encoder's, read it back from a checkpoint, or add one to an LLM that is to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

from nlt_trainer.content import ADAPTER_WEIGHTS
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM


def lora_config(task: TaskType, lora: Mapping[str, object]) -> LoraConfig:
    """Make an adapter's configuration.

    Args:
        task: what the adapted model is for.
        lora: arguments of `peft.LoraConfig`, e.g. `{"r": 16, "target_modules": "all-linear"}`.

    Raises:
        NLTError: an argument that `LoraConfig` does not have, or a value that it refuses.
    """
    try:
        return LoraConfig(task_type=task, **lora)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise NLTError(f"lora {dict(lora)!r}: {error}; give arguments of peft.LoraConfig, e.g. {{r: 16}}") from error


def add_llm_lora(lm: FrozenLM, lora: Mapping[str, object], *, seed: int) -> dict[str, nn.Parameter]:
    """Put an adapter on an LLM and return its parameters, in float32, by name; all others stay frozen.

    Args:
        lm: the LLM; nobody else should read it afterwards.
        lora: arguments of `peft.LoraConfig`, e.g. `{"r": 16, "target_modules": "all-linear"}`.
        seed: of the adapter's random start, equal on all processes.
    """
    with torch.random.fork_rng(devices=[]):  # an adapter's random start is drawn on the CPU
        torch.manual_seed(seed)
        lm.model.add_adapter(lora_config(TaskType.CAUSAL_LM, lora))
    lm.model.eval()
    for module in lm.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.train()  # for lora_dropout; the LLM's own dropout stays off
    adapter = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
    for parameter in adapter.values():
        parameter.data = parameter.data.float()  # optimizer steps are smaller than bfloat16 can represent
    return adapter


def merge_lora(encoder: SentenceTransformer) -> None:
    """Put the trained weights into the places of the adapter's modules; without an adapter nothing happens.

    Each adapter's product is added to the weight that it adapts, and a module of `modules_to_save` is replaced by its
    trained copy. The sums are new tensors, because a frozen LLM may share the memory of the old weights.
    """
    adapters = encoder.active_adapters() if _first_wrapper(encoder) else []
    while found := _first_wrapper(encoder):  # a trained copy may itself have adapted layers
        name, wrapper = found
        if isinstance(wrapper, BaseTunerLayer):
            wrapper.merge(safe_merge=True)
            merged = wrapper.get_base_layer()
        else:
            merged = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, merged)
    if adapters:
        encoder.delete_adapter(adapters)


def check_no_adapter(encoder: SentenceTransformer, name: str) -> None:
    """Refuse to train an encoder that is an adapter on a base: its checkpoints could not be loaded.

    Raises:
        NLTError: the encoder has an adapter.
    """
    if _first_wrapper(encoder):
        raise NLTError(
            f"encoder {name!r} is an adapter on another model, and training starts from whole weights; run "
            "`nlt export --form merged` with the recipe that has trained it, and name the folder that this writes"
        )


def _first_wrapper(encoder: SentenceTransformer) -> tuple[str, BaseTunerLayer | AuxiliaryTrainingWrapper] | None:
    """Name and module of the first of the encoder's modules that an adapter has taken the place of."""
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return next(((name, module) for name, module in encoder.named_modules() if isinstance(module, wrappers)), None)


def load_lora(encoder: SentenceTransformer, folder: str | Path) -> None:
    """Give the encoder's adapter the weights that a checkpoint has, in the adapter's own dtype.

    Args:
        encoder: with the adapter that the checkpoint was written from.
        folder: a Sentence-Transformers folder with `adapter_model.safetensors`.
    """
    weights = load_file(Path(folder) / ADAPTER_WEIGHTS)
    state = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
    set_peft_model_state_dict(encoder.transformers_model, state, adapter_name=encoder.active_adapters()[0])
