"""Check an encoder that was saved, exported or is to be published: loaded in any way, it embeds as in the trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from nlt_trainer.content import ADAPTER_WEIGHTS, check_files
from nlt_trainer.encoder.lora import merge_lora
from nlt_trainer.encoder.probes import EncodeFunction, Probe, difference, probe
from nlt_trainer.errors import NLTError
from nlt_trainer.locations import loading

TASK = TaskMetadata(
    name="loading_check",
    description="Probe texts.",
    dataset={"path": "none", "revision": "none"},
    type="Retrieval",
    category="t2t",
    eval_splits=["test"],
    eval_langs=["eng-Latn"],
    main_score="ndcg_at_10",
)


def check_loading(folder: Path, trained: Probe, **options: Any) -> list[str]:
    """Load a folder in each way in which others will, and compare with the encoder as it was in the trainer.

    The folder is loaded by Sentence-Transformers and by mteb's wrapper of it. `mteb.get_model` returns that wrapper
    for an encoder of the Hub, and does not accept a folder on disk. An adapter is also merged and compared. Everything
    runs on the CPU in float32.

    Args:
        folder: a Sentence-Transformers folder.
        trained: the probe that `nlt train` has written.
        **options: passed to `SentenceTransformer`, e.g. `backend="onnx"`.

    Returns:
        The ways of loading that gave equal embeddings.

    Raises:
        DataError: a file is not as it was saved. The embeddings of a few texts may not show it.
        NLTError: the folder cannot be loaded, or an embedding differs by more than 1e-5; names the way of loading and
            the first layer that differs.
    """
    check_files(folder)
    with loading("encoder", str(folder)):
        encoder = SentenceTransformer(str(folder), device="cpu", **options)
    _compare(f'SentenceTransformer("{folder}")', probe(encoder), trained)
    checked = ["SentenceTransformer"]
    if (folder / ADAPTER_WEIGHTS).is_file():
        merge_lora(encoder)
        _compare(f"the adapter in {folder}, merged into its base,", probe(encoder), trained)
        checked.append("adapter merged")
    del encoder  # so that memory does not hold two copies
    _compare(f'mteb with "{folder}"', _probe_mteb(folder, **options), trained)
    return [*checked, "mteb"]


def _compare(what: str, found: Probe, trained: Probe) -> None:
    if (different := difference(found, trained)) is not None:
        raise NLTError(f"{what} is not the encoder that was trained: {different}. Nothing is published")


def _probe_mteb(folder: Path, **options: Any) -> Probe:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"mteb\.")
        return probe_wrapper(SentenceTransformerEncoderWrapper(str(folder), device="cpu", **options))


def probe_wrapper(wrapper: SentenceTransformerEncoderWrapper) -> Probe:
    """Probe an encoder through mteb, with the prompts that mteb looks up.

    Args:
        wrapper: what `mteb.get_model` returns.
    """

    def encode(prompt_type: PromptType) -> EncodeFunction:
        return lambda texts: wrapper.encode(
            DataLoader(Dataset.from_dict({"text": texts})),
            task_metadata=TASK,
            hf_split="test",
            hf_subset="default",
            prompt_type=prompt_type,
            batch_size=1,
            show_progress_bar=False,
        )

    return probe(wrapper.model, encode_query=encode(PromptType.query), encode_document=encode(PromptType.document))
