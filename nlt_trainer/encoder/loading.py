"""Load a dense encoder: any SentenceTransformer, a transformer with pooling, or an LLM's token embeddings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlt_trainer.choices import EncoderDtype, PoolingMode, check_choice
from nlt_trainer.content import check_files
from nlt_trainer.encoder.lora import check_no_adapter, lora_config
from nlt_trainer.encoder.positions import position_limit
from nlt_trainer.encoder.shared_backbone import share_weights
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.locations import adapter_base, loading, resolve_model

logger = logging.getLogger(__name__)


def load_encoder(
    name: str,
    *,
    revision: str | None = None,
    dtype: EncoderDtype = "float32",
    prompts: Mapping[str, str] | None = None,
    max_seq_length: int | None = None,
    pooling: PoolingMode | None = None,
    lora: Mapping[str, object] | None = None,
    device: str | None = None,
    backbone: FrozenLM | None = None,
) -> SentenceTransformer:
    """Load an encoder to train or to use.

    Args:
        name: anything that `resolve_model` takes: a Sentence-Transformers model, or a plain transformer
            (BERT-like or decoder), to which pooling and normalisation are added.
        revision: of a Hub model.
        dtype: `float32` or `bfloat16`; the weights are converted to it, but an adapter is always float32.
        prompts: texts that are put in front of queries and documents; only the keys `query` and `document` are
            allowed, because MTEB ignores others.
        max_seq_length: tokens at which texts are cut; the default is the model's own, as far as it has positions.
        pooling: pooling for a plain transformer: `mean`, `cls` or `lasttoken`. A Sentence-Transformers folder has its
            own pooling; leave this out or name the same one.
        lora: arguments of `peft.LoraConfig`, e.g. `{"r": 16, "lora_alpha": 32}`; then only the adapter is trained.
        device: the default is CUDA if there is one, else the CPU.
        backbone: the LLM of the same name, whose weights the encoder shares instead of a copy; this needs pooling and
            LoRA.

    Raises:
        DataError: a file is not as `nlt train` has saved it.
        NLTError: the model cannot be loaded, or a setting does not fit it.
    """
    if unknown := set(prompts or {}) - {"query", "document"}:
        raise NLTError(f"prompts has the keys {sorted(unknown)}; only 'query' and 'document' are used by MTEB")
    check_choice("encoder dtype", dtype, EncoderDtype)
    if pooling is not None:
        check_choice("pooling", pooling, PoolingMode)
    location = resolve_model(name)
    check_files(Path(location))
    kwargs: dict[str, Any] = {"use_safetensors": True, "dtype": dtype}
    if backbone is not None:
        _check_backbone(name, backbone, pooling=pooling, lora=lora)
    with loading("encoder", name, revision=revision):
        whole = backbone is None and Path(location, "modules.json").is_file()
        if pooling is None or whole:
            encoder = SentenceTransformer(location, revision=revision, device=device, model_kwargs=kwargs)
            _check_own_pooling(encoder, name, pooling)
        else:
            _check_pooling(location, pooling)
            transformer = _transformer(location, revision=revision, kwargs=kwargs, backbone=backbone)
            encoder = _with_pooling(transformer, pooling, device=str(backbone.device) if backbone else device)
        _set_length(encoder, name, max_seq_length)
    # MTEB and encode_query/encode_document look for prompts under these two names.
    encoder.prompts = {"query": "", "document": "", **encoder.prompts, **(prompts or {})}
    if lora:
        if isinstance(encoder[0], StaticEmbedding):
            raise NLTError(
                f"encoder {name!r} is a table of token embeddings; LoRA needs a transformer, leave `lora` out"
            )
        check_no_adapter(encoder, name)
        _add_lora(encoder, lora, base=adapter_base(location))
    return encoder


def _set_length(encoder: SentenceTransformer, name: str, length: int | None) -> None:
    """Set the limit of texts that a recipe names, or lower the encoder's own to what it has positions for."""
    if length is not None and isinstance(encoder[0], StaticEmbedding):
        raise NLTError(
            f"encoder {name!r} is a table of token embeddings, which reads texts of any length; leave "
            "`max_seq_length` out"
        )
    most = position_limit(encoder) or math.inf
    if length is not None and not 1 <= length <= most:
        raise NLTError(f"max_seq_length is {length}, and encoder {name!r} reads texts of 1 to {most} tokens")
    if length is not None:
        encoder.max_seq_length = length
    elif most < (encoder.max_seq_length or math.inf):  # an encoder may state more than it has positions for
        encoder.max_seq_length = most


def _add_lora(encoder: SentenceTransformer, lora: Mapping[str, object], *, base: str) -> None:
    encoder.add_adapter(lora_config(TaskType.FEATURE_EXTRACTION, lora))
    transformer: Any = encoder.transformers_model
    transformer.peft_config["default"].base_model_name_or_path = base  # a saved adapter names it
    for parameter in encoder.parameters():
        if parameter.requires_grad:  # the adapter gets the base's dtype, and bfloat16 would lose small steps
            parameter.data = parameter.data.float()


def _check_backbone(name: str, backbone: FrozenLM, *, pooling: str | None, lora: Mapping[str, object] | None) -> None:
    if resolve_model(name) != resolve_model(backbone.name):
        raise NLTError(
            f"shared_backbone: encoder {name!r} and LLM {backbone.name!r} are two models; give both the same name"
        )
    if pooling is None or not lora:
        raise NLTError(
            "shared_backbone: the encoder is a LoRA adapter on the LLM; set pooling (lasttoken for a decoder) and lora"
        )


def _check_own_pooling(encoder: SentenceTransformer, name: str, pooling: str | None) -> None:
    own = {str(module.pooling_mode) for module in encoder if isinstance(module, Pooling)}
    if pooling is not None and own != {pooling}:
        raise NLTError(
            f"{name} is a Sentence-Transformers model with its own pooling; leave `pooling` out or set it to "
            f"{', '.join(own) or 'null'}"
        )


def _check_pooling(location: str, pooling: str) -> None:
    if Path(location, "modules.json").is_file():
        raise NLTError(f"{location} is a Sentence-Transformers model with its own pooling; leave `pooling` out")


def _transformer(
    location: str, *, revision: str | None, kwargs: dict[str, Any], backbone: FrozenLM | None
) -> Transformer:
    """The plain transformer, with its own weights or with the backbone's."""
    if backbone is not None:
        kwargs = {**kwargs, "device_map": "meta", "dtype": backbone.model.dtype}  # modules without memory
    at: dict[str, Any] = {"revision": revision, "trust_remote_code": False}  # if unset, transformers asks the user
    transformer = Transformer(location, model_kwargs=kwargs | at, config_kwargs=at, processor_kwargs=dict(at))
    if backbone is not None:
        share_weights(transformer.model, backbone)
    return transformer


def _with_pooling(transformer: Any, pooling: str, *, device: str | None) -> SentenceTransformer:
    if pooling == "lasttoken" and transformer.tokenizer.pad_token is None:
        transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling), Normalize()]
    return SentenceTransformer(modules=modules, device=device)


def encoder_from_token_embeddings(llm: str) -> SentenceTransformer:
    """Make an encoder that was never trained for retrieval: a normalised weighted mean of an LLM's token embeddings.

    The mean of the embeddings and their D / 100 strongest directions are removed, because all tokens share them
    (all-but-the-top, arXiv 1702.01417). Each token is weighted by log(1 + its id). Byte-pair vocabularies are sorted
    by frequency, so by Zipf's law this weight is an inverse frequency, as in Model2Vec. No text is read.

    Args:
        llm: anything that `resolve_model` takes.

    Raises:
        NLTError: the LLM cannot be loaded.
    """
    location = resolve_model(llm)
    with loading("LLM", llm):
        model: Any = AutoModelForCausalLM.from_pretrained(
            location, dtype="float32", use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False).backend_tokenizer
    embeddings = all_but_the_top(model.get_input_embeddings().weight.detach())
    encoder = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embeddings), Normalize()])
    encoder.prompts = {"query": "", "document": ""}
    return encoder


def all_but_the_top(embeddings: Tensor) -> Tensor:
    """Token embeddings `(V, D)` without their mean and D / 100 strongest directions, weighted by log(1 + id).

    The result is the same to the last bit for any number of torch's threads. A run that starts from such embeddings
    can therefore be resumed with another number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits of a sum depend on the number of threads
    try:
        centred = embeddings - embeddings.mean(0)
        _, directions = torch.linalg.eigh(centred.T @ centred)  # (D, D), weakest first
        top = directions[:, -max(1, round(embeddings.shape[1] / 100)) :]
        weight = torch.log1p(torch.arange(len(embeddings), dtype=embeddings.dtype))
        return (centred - centred @ top @ top.T) * (weight / weight.mean())[:, None]
    finally:
        torch.set_num_threads(threads)
