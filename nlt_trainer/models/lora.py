"""LoRA adapters of an encoder, merged into its weights."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer


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
