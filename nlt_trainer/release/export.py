"""Save a run's encoder and export it: merged, as its adapter alone, or for another runtime. Each export is checked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from nlt_trainer.choices import ExportForm, check_choice
from nlt_trainer.content import ADAPTER_WEIGHTS, check_files, record_files
from nlt_trainer.encoder.lora import merge_lora
from nlt_trainer.encoder.probes import Probe, probe
from nlt_trainer.errors import NLTError
from nlt_trainer.files import FolderStage, atomic_folder, check_folder
from nlt_trainer.locations import loading
from nlt_trainer.release.loading_check import check_loading
from nlt_trainer.run.folder import Run

RUNTIMES = {"onnx": "onnxruntime", "openvino": "optimum.intel"}
"""Runtime to which Sentence-Transformers exports -> a package that it needs."""


def save_trained(run: Run, encoder: SentenceTransformer, *, merge: bool, keep_adapter: bool) -> None:
    """Save the encoder that a run has trained, and a probe of it with which `check_saved` and exports compare.

    Args:
        run: the run.
        encoder: as it comes out of the trainer; `merge` merges its adapter.
        merge: save it with its adapter merged, in float32; else the adapter alone, in a folder that names its base.
        keep_adapter: with `merge`, save the adapter alone too, in a folder of its own.

    Raises:
        NLTError: a weight is not finite.
    """
    for name, parameter in encoder.named_parameters():
        if not parameter.isfinite().all():
            raise NLTError(f"training has made {name} infinite or NaN, nothing is saved; lower learning_rate")
    run.folder.mkdir(parents=True, exist_ok=True)
    probe(encoder).save(run.probe_file)  # makes it float32: a bfloat16 base would round the merged product away
    if merge and keep_adapter:
        _save(run.adapter, encoder, stage="nlt train")
    if merge:
        merge_lora(encoder)
    _save(run.encoder, encoder, stage="nlt train")


def check_saved(run: Run) -> None:
    """Load the encoder that a run has saved, and compare it with the encoder as it was in the trainer.

    Raises:
        NLTError: it cannot be loaded, or an embedding differs.
    """
    check_loading(run.encoder, Probe.load(run.probe_file))


def _save(folder: Path, encoder: SentenceTransformer, *, stage: FolderStage) -> None:
    with atomic_folder(folder, stage=stage) as partial:
        encoder.save_pretrained(str(partial))
        record_files(partial)


def export(run: Run, form: ExportForm) -> tuple[Path, list[str]]:
    """Export a run's encoder in another form, and compare it with the encoder as it was in the trainer.

    Args:
        run: a finished run.
        form: `merged` and `adapter` are Sentence-Transformers folders; `onnx` and `openvino` are such folders with
            the transformer in that runtime's format, by Sentence-Transformers' own export.

    Returns:
        The folder, and the ways of loading that gave equal embeddings.

    Raises:
        DataError: a file of the run's encoder is not as it was saved.
        NLTError: the run has no such form, a package is missing, or a way of loading gives other embeddings.
    """
    check_choice("form", form, ExportForm)
    if not (run.encoder).is_dir():
        raise NLTError(f"{run.folder} has no finished encoder; run `nlt train` with this recipe first")
    check_files(run.encoder)
    trained = Probe.load(run.probe_file)
    if form in RUNTIMES:
        return _export_runtime(run, form, trained)
    folder = _adapter(run) if form == "adapter" else _merged(run)
    return folder, check_loading(folder, trained)


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_WEIGHTS).is_file()


def _adapter(run: Run) -> Path:
    for folder in (run.encoder, run.adapter):
        if _is_adapter(folder):
            return folder
    lora = run.settings["model"]["lora"]
    why = "it would name its base without the revision or the adapter under it; export merged"
    raise NLTError(f"{run.folder} has no adapter to export: {why if lora else 'it was trained without lora'}")


def _merged(run: Run) -> Path:
    if not _is_adapter(run.encoder):
        return run.encoder
    check_folder(run.exported("merged"), stage="nlt export")
    with loading("encoder", str(run.encoder)):
        encoder = SentenceTransformer(str(run.encoder), device="cpu").float()
    merge_lora(encoder)
    transformer: Any = encoder.transformers_model
    with atomic_folder(run.exported("merged"), stage="nlt export") as partial:
        encoder.save_pretrained(str(partial))
        # transformers has saved the weights under names for an adapter, which no loader finds, so save them again
        transformer.save_pretrained(partial, save_original_format=False)
        record_files(partial)
    return run.exported("merged")


def _export_runtime(run: Run, form: ExportForm, trained: Probe) -> tuple[Path, list[str]]:
    """Export through Sentence-Transformers' backend of the same name."""
    check_folder(run.exported(form), stage="nlt export")
    merged = _merged(run)
    if not _installed(RUNTIMES[form]) or not _installed("optimum"):
        raise NLTError(
            f"form {form} needs the extra sentence-transformers[{form}], which is not installed, and which takes an "
            f"older transformers than nlt_trainer does. In an environment of its own: pip install "
            f"'sentence-transformers[{form}]', then python -c 'from sentence_transformers import SentenceTransformer "
            f'as S; S("{merged}", backend="{form}").save_pretrained("{run.exported(form)}")\''
        )
    encoder = SentenceTransformer(str(merged), device="cpu", backend=form)  # type: ignore[arg-type]
    _save(run.exported(form), encoder, stage="nlt export")
    return run.exported(form), check_loading(run.exported(form), trained, backend=form)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # raised where the parent package is missing
        return False
