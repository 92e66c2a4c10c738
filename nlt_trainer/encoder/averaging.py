"""Averages of the weights with which training began and of those with which it ended.

An average keeps more of what the start knew than the trained weights do, and loses little of what was learned: Xiao et
al., *LM-Cocktail: Resilient Tuning of Language Models via Model Merging*, https://arxiv.org/abs/2311.13534.
"""

from __future__ import annotations

from collections.abc import Mapping

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.errors import NLTError

FIRST_FACTOR = ("lora_A.", "lora_embedding_A.")
"""Parts of the names of an adapter's first factors."""
SECOND_FACTOR = ("lora_B.", "lora_embedding_B.")
"""Parts of the names of an adapter's second factors, which are 0 where training begins with the base itself."""


def averaged_parameters(encoder: SentenceTransformer) -> dict[str, nn.Parameter]:
    """The parameters whose averages average the encoder: all that are trained but an adapter's first factors.

    An adapter adds the product of its two factors to a weight. The second factor is 0 in the start, so that its
    average scales the product, and the merged weights are the average of the base's and of the trained ones.
    """
    return {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and not any(part in name for part in FIRST_FACTOR)
    }


def weights_of(encoder: SentenceTransformer) -> dict[str, Tensor]:
    """A copy of the averaged parameters on the CPU, by name."""
    return {name: parameter.detach().cpu().clone() for name, parameter in averaged_parameters(encoder).items()}


def start_weights(encoder: SentenceTransformer) -> dict[str, Tensor]:
    """A copy of the weights with which training begins, for `average_weights`.

    Raises:
        NLTError: the encoder's adapter is none whose scale averages the weights.
    """
    weights = weights_of(encoder)
    for name, weight in weights.items():
        if "lora_magnitude_vector" in name:
            raise NLTError("average_with_start: DoRA's weights are no sum of base and adapter; leave use_dora out")
        if any(part in name for part in SECOND_FACTOR) and weight.any():
            raise NLTError(
                f"average_with_start: the adapter's {name} is not 0 in the start, so that scaling it would not lead "
                "back to the base; leave init_lora_weights out"
            )
    return weights


def average_weights(encoder: SentenceTransformer, start: Mapping[str, Tensor], share: float) -> None:
    """Replace the encoder's weights by `share` of the start's and `1 - share` of its own, in place.

    Args:
        encoder: the encoder.
        start: the other weights, as `start_weights` or `weights_of` returns them.
        share: from 0, which changes nothing, to 1, which leaves exactly the other weights.
    """
    for name, parameter in averaged_parameters(encoder).items():
        parameter.data.lerp_(start[name].to(parameter), share)
