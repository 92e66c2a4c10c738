"""LoRA adapters of an encoder: merged into its weights, or read back from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def merge_lora(encoder: SentenceTransformer) -> None:
    """Add each adapter's product to the weight that it adapts and remove the adapter; without one nothing happens.

    The sums are new tensors: a frozen LLM may use the memory of the weights as they were.
    """
    layers = [(name, module) for name, module in encoder.named_modules() if isinstance(module, BaseTunerLayer)]
    adapters = encoder.active_adapters() if layers else []
    for name, layer in layers:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
    if adapters:
        encoder.delete_adapter(adapters)


def load_lora(encoder: SentenceTransformer, folder: str | Path) -> None:
    """Give the encoder's adapter the weights that a checkpoint has, in the adapter's own dtype.

    Args:
        encoder: with the adapter that the checkpoint was written from.
        folder: a Sentence-Transformers folder with `adapter_model.safetensors`.
    """
    weights = load_file(Path(folder) / ADAPTER_WEIGHTS)
    state = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
    set_peft_model_state_dict(encoder.transformers_model, state, adapter_name=encoder.active_adapters()[0])
