"""The recipe's block `model:`: the encoder, the frozen LLM and its heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nlt_trainer.arguments.option import check_values, option
from nlt_trainer.choices import EncoderDtype, HeadSelection, LLMDtype, PoolingMode
from nlt_trainer.errors import NLTError


@dataclass
class ModelArguments:
    """Parameters that control the models."""

    encoder: str = option(
        default="sentence-transformers/all-MiniLM-L6-v2",
        decides="start",
        path="model",
        help="Encoder to start from: Hub id, folder, or package:<module>/<path>.",
    )
    encoder_revision: str | None = option(
        default=None,
        decides="start",
        help="Revision of an encoder from the Hub.",
    )
    encoder_dtype: EncoderDtype = option(
        default="float32",
        decides="start",
        help="Dtype of the encoder: float32, or bfloat16 for a base of which only a LoRA adapter is trained.",
    )
    pooling: PoolingMode | None = option(
        default=None,
        decides="start",
        help="Pooling added to a plain transformer: mean, cls or lasttoken. An encoder has its own: leave it unset.",
    )
    max_seq_length: int | None = option(
        default=None,
        decides="start",
        help="The most tokens of a text that the encoder reads; unset: the encoder's own limit.",
    )
    train_max_length: int | None = option(
        default=None,
        decides="start",
        help="The most tokens of a text that the encoder reads in training; unset: as many as at inference.",
    )
    encoder_prompts: dict[str, str] | None = option(
        default=None,
        decides="start",
        help="Texts to put before queries and documents, under the keys query and document.",
    )
    lora: dict[str, int | float | str | list[str]] | None = option(
        default=None,
        decides="start",
        help="Arguments of peft.LoraConfig for the encoder, e.g. {r: 16, lora_alpha: 32}.",
    )
    llm: str = option(
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        decides="llm",
        path="model",
        help=(
            "Frozen LLM: Hub id, folder, .gguf file, package:<module>/<path>, or the address of a server, such as "
            "http://127.0.0.1:8000/v1, which score alone can ask."
        ),
    )
    llm_revision: str | None = option(
        default=None,
        decides="llm",
        help="Revision of an LLM from the Hub.",
    )
    # what these two decide is part of `llm_content` where the LLM is on a server
    llm_model: str | None = option(
        default=None,
        decides="nothing",
        help="Name of the LLM on a server; unset: the first that it lists.",
    )
    llm_tokenizer: str | None = option(
        default=None,
        decides="nothing",
        path="model",
        help="Tokenizer of an LLM on a server, named as an LLM is; unset: it has the server's name of the LLM.",
    )
    llm_requests: int = option(
        default=64,
        decides="nothing",
        help="Number of prompts for an LLM on a server that are in flight at once.",
    )
    adapter: str | None = option(
        default=None,
        decides="llm",
        path="model",
        help="LoRA adapter that is merged into the LLM and frozen: Hub id or folder (adapt_scorer makes one).",
    )
    llm_lora: dict[str, int | float | str | list[str]] | None = option(
        default=None,
        decides="llm",
        help=(
            "Arguments of peft.LoraConfig for an adapter of the LLM that is trained with the encoder and then "
            "dropped (revela); unset: the LLM is frozen."
        ),
    )
    llm_dtype: LLMDtype = option(
        default="auto",
        decides="llm",
        help="Dtype of the LLM: float32, bfloat16, float16, or auto: bfloat16 where the machine multiplies it.",
    )
    llm_device: str | None = option(
        default=None,
        decides="nothing",
        help="Device of the LLM, e.g. cuda:1 or cpu; unset: the current accelerator, else the CPU.",
    )
    llm_process: bool = option(
        default=False,
        decides="nothing",
        help="Keep the LLM that training reads in a process of its own; this changes neither loss nor gradient.",
    )
    shared_backbone: bool = option(
        default=False,
        decides="start",
        help=(
            "Let the encoder be a LoRA adapter on the weights of the LLM that training reads, so that memory holds "
            "one copy, in llm_dtype. encoder and llm must name the same model, and pooling and lora must be set."
        ),
    )
    merge_lora: bool = option(
        default=True,
        decides="nothing",
        help=(
            "Save the encoder with its adapter merged, as a folder that needs no other; false: save the adapter "
            "alone, as a small folder that names its base."
        ),
    )
    adapter_lora: dict[str, int | float | str | list[str]] = option(
        default_factory=lambda: {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        decides="adaptation",
        help="Arguments of peft.LoraConfig for the adapter of the LLM that adapt_scorer fits.",
    )
    heads: str = option(
        default="heads.json",
        decides="nothing",
        path="file",
        help="File of query-focused heads: detect_heads writes it, dream reads it.",
    )
    num_heads: int = option(
        default=16,
        decides="nothing",
        help="Number of heads that detect_heads keeps (DREAM's paper has 16).",
    )
    head_selection: HeadSelection = option(
        default="best",
        decides="nothing",
        help="Which heads detect_heads keeps: best, or as a control worst or random (from all heads, by seed).",
    )
    head_scores: str | None = option(
        default=None,
        decides="nothing",
        path="file",
        help="Head file whose scores detect_heads selects from; unset: it observes the LLM's attention.",
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.llm_requests < 1:
            raise NLTError(f"llm_requests is {self.llm_requests}; it must be at least 1")
        if self.llm.startswith(("http://", "https://")):  # `is_server`, whose module imports transformers
            _check_address(self.llm)
        if self.shared_backbone and (self.llm_device is not None or self.llm_process):
            raise NLTError("shared_backbone keeps encoder and LLM on one device; leave llm_device and llm_process out")
        if self.shared_backbone and self.encoder_revision != self.llm_revision:
            raise NLTError(
                f"shared_backbone: encoder_revision is {self.encoder_revision!r} and llm_revision "
                f"{self.llm_revision!r}; set both to one"
            )
        if not self.merge_lora and not self.lora:
            raise NLTError("merge_lora: false saves the encoder's adapter alone, and there is none; set lora")
        if not self.merge_lora and not self.keep_adapter:
            raise NLTError(
                "merge_lora: false saves an adapter that names its base and neither a revision nor another adapter; "
                "set merge_lora: true"
            )

    @property
    def keep_adapter(self) -> bool:
        """Whether the encoder's adapter can be saved alone. A saved adapter only names its base, so this needs a base
        that has neither a revision nor an adapter of its own."""
        return bool(self.lora) and not (self.encoder_revision or (self.shared_backbone and self.adapter))


def _check_address(llm: str) -> None:
    """Refuse an address that is malformed, or has in it what must not be seen."""
    try:
        address = urlsplit(llm)
        whole = bool(address.hostname and address.port != 0 and llm.isprintable() and " " not in llm)
    except ValueError:  # of the port, which is read here, or of brackets
        whole = False
    if not whole:
        raise NLTError("llm is an address that is malformed; write it like http://127.0.0.1:8000/v1")
    if address.query or address.fragment or "@" in address.netloc:
        raise NLTError(
            "llm is an address with a name, a password, a query or a fragment, which would stand in cards and "
            "logs; give the address alone, and the key in the environment variable OPENAI_API_KEY"
        )


def start_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """How the encoder from which training starts is loaded.

    Args:
        model: the model block of a recipe, as `vars(model)` or as read from the settings of a run.

    Returns:
        Keyword arguments of `load_encoder`.
    """
    prefixed = {key: model[f"encoder_{key}"] for key in ("revision", "prompts")}
    return prefixed | {key: model[key] for key in ("max_seq_length", "pooling")}
