"""Read a recipe's gains, of which the audit beside them says how they were computed, and make training rows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from datasets import Dataset

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.parts import target_of
from nlt_trainer.choices import TargetKind
from nlt_trainer.content import model_content
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.gains import read_audit, read_gains, read_likelihoods
from nlt_trainer.data.prior import with_prior
from nlt_trainer.data.training import training_dataset
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.locations import is_server, local_path
from nlt_trainer.training_arguments import NLTTrainingArguments

logger = logging.getLogger(__name__)

SCORER_KEYS = ("llm", "llm_revision", "llm_model", "adapter", "llm_dtype")
"""Keys of a recipe that say which LLM computes the gains."""


def load_gains(
    model: ModelArguments,
    data: DataArguments,
    *,
    collection: Collection,
    candidates: list[QueryCandidates],
    as_labels: bool = False,
) -> np.ndarray:
    """Read the recipe's gains: `(B, K)` float64, nats per target token. All stages read them here.

    Args:
        model: the block `model:`, which names the LLM.
        data: the block `data:`, which names the file and the prompt.
        collection: has the documents.
        candidates: B queries with K candidates each.
        as_labels: whether the gains only say which candidates are relevant, see `check_scorer`.

    Raises:
        DataError: the file is missing or malformed, or was made for other candidates or texts, see `read_gains`.
        NLTError: the gains have changed, or were computed with another prompt or LLM, see `check_scorer`.
    """
    if Path(data.gains).is_file():
        check_scorer(model, data, target_of(data, candidates), as_labels=as_labels)
    return read_gains(data.gains, candidates, corpus=collection.corpus)


def check_scorer(
    model: ModelArguments, data: DataArguments, target: TargetKind | None, *, as_labels: bool = False
) -> None:
    """Check that the recipe's gains were computed with the recipe's prompt and LLM.

    The audit beside the gains says how they were computed. Entries that an older audit does not have are not compared.
    An LLM or an adapter counts by its name and, where it is a folder on this machine, by its content. Gains that have
    no audit may come from elsewhere, so that a warning says what is not known of them.

    Args:
        model: the block `model:`, which names the LLM.
        data: the block `data:`, which names the file and the prompt.
        target: what the LLM has predicted; `None` where the candidates decide it and are not read.
        as_labels: whether the gains only say which candidates are relevant, after which the LLM reads the documents
            again. It may then read more or less of them, and a server may have computed the gains.

    Raises:
        DataError: the gains have changed since they were written, or the audit is malformed.
        NLTError: the gains were computed with another prompt or LLM; the message names what differs.
    """
    path, audit = audit_file(data.gains), read_audit(data.gains)
    if not audit:
        logger.warning(
            "%s has no audit %s, so that nothing says which LLM and which prompt its gains come from; `nlt score` "
            "writes both", data.gains, path.name,
        )  # fmt: skip
        return
    if audit.get("content") not in (None, file_hash(Path(data.gains))):
        raise DataError(
            data.gains,
            f"is not as `nlt score` wrote it; run that again, which has its scores in the cache, or remove {path} if "
            "you have changed the gains yourself",
        )
    scorer = audit["scorer"]
    keys = ("target", "max_document_tokens")
    found = {**{k: scorer[k] for k in keys if k in scorer}, **scorer.get("template", {}), **scorer.get("model", {})}
    stated = {**data.template.as_dict(), "target": target, "max_document_tokens": data.max_document_tokens}
    stated |= {key: getattr(model, key) for key in SCORER_KEYS}
    # without a model's name, a server has answered with the first of its list
    open_to_all = {key for key in ("target", "llm_model") if stated[key] is None}
    if as_labels:
        open_to_all |= {"max_document_tokens", *(SCORER_KEYS if is_server(str(found.get("llm"))) else ())}
    compared = [key for key in stated if key in found and key not in open_to_all]
    if different := [key for key in compared if found[key] != stated[key]]:
        were = ", ".join(f"{key} {found[key]!r} and not {stated[key]!r}" for key in different)
        raise NLTError(
            f"{data.gains} was scored with {were}; run nlt score again, or set {', '.join(different)} as in {path}"
        )
    for key, name in {"weights": model.llm, "adapter": model.adapter}.items():
        before, now = scorer.get("llm", {}).get(key), _folder_content(name, base=key == "weights")
        if before and now not in (None, before):
            raise NLTError(
                f"{data.gains} was scored with other files in {name} than it has now; run nlt score again, or put the "
                "former ones back"
            )


def _folder_content(name: str | None, *, base: bool) -> str | None:
    """Content of an LLM or, without its base, of an adapter, see `model_content`; `None` if it is no folder here."""
    try:
        folder = None if name is None else local_path(name)
        return model_content(str(folder), base=base) if folder is not None and folder.is_dir() else None
    except NLTError:  # it is needed no more, once its gains are there
        return None


def make_dataset(
    model: ModelArguments,
    data: DataArguments,
    args: NLTTrainingArguments,
    *,
    collection: Collection,
    candidates: list[QueryCandidates],
) -> Dataset:
    """Make the training rows, with gains only if the objective reads them, and labels only if the recipe says so.

    Raises:
        NLTError: labels are asked for without a split, or the gains are refused, see `load_gains`.
    """
    labelled = args.reads_labels(data)
    if labelled and data.train_split is None:
        raise NLTError("labels: true takes positives from qrels/<train_split>.tsv; set train_split")
    names, gain = args.reads_likelihoods, None
    if args.reads_gains(data):
        weight = args.number("prior_weight")
        gain = load_gains(model, data, collection=collection, candidates=candidates)
        gain = with_prior(gain, candidates, prior=args.prior, weight=weight)
    return training_dataset(
        collection,
        candidates,
        gain=gain,
        likelihoods=read_likelihoods(data.gains, candidates, names, corpus=collection.corpus) if names else None,
        qrels=collection.split_qrels(str(data.train_split)) if labelled else None,
    )
