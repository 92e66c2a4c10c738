"""The forms in which a run's encoder leaves: merged, adapter alone, or for another runtime; all are checked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from nlt_trainer.choices import ExportForm, check_choice
from nlt_trainer.encoder.lora import ADAPTER_WEIGHTS, merge_lora
from nlt_trainer.encoder.probes import Probe, probe
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_folder, read_json
from nlt_trainer.locations import loading
from nlt_trainer.release.loading_check import check_parity

ENCODER = "encoder"
PROBE_FILE = "probe.safetensors"
RUNTIMES = {"onnx": "onnxruntime", "openvino": "optimum.intel"}
"""Runtimes to which Sentence-Transformers exports, and a package that each needs."""


def save_trained(run: Path, encoder: SentenceTransformer, *, merge: bool, keep_adapter: bool) -> None:
    """Save what a run has trained: `<run>/encoder`, and `<run>/probe.safetensors` to check exports against.

    Args:
        run: folder of the run.
        encoder: as it comes out of the trainer; afterwards its adapter is merged.
        merge: save it with its adapter merged, in float32; else the adapter alone, in a folder that names its base.
        keep_adapter: where it is merged, save the adapter alone too, in `<run>/adapter`.

    Raises:
        NLTError: a weight is not finite.
    """
    for name, parameter in encoder.named_parameters():
        if not parameter.isfinite().all():
            raise NLTError(f"training has made {name} infinite or NaN, nothing is saved; lower learning_rate")
    run.mkdir(parents=True, exist_ok=True)
    probe(encoder).save(run / PROBE_FILE)  # float32: a bfloat16 base would round the merged product away
    if merge and keep_adapter:
        _save(run / "adapter", encoder)
    if merge:
        merge_lora(encoder)
    _save(run / ENCODER, encoder)


def _save(folder: Path, encoder: SentenceTransformer) -> None:
    with atomic_folder(folder) as partial:
        encoder.save_pretrained(str(partial))


def export(run: Path, form: ExportForm) -> tuple[Path, list[str]]:
    """Have a run's encoder in another form, and check it against the encoder as it was in the trainer.

    Args:
        run: folder of a finished run.
        form: `merged` and `adapter` are Sentence-Transformers folders; `onnx` and `openvino` are such folders with
            the transformer in that runtime's format, by Sentence-Transformers' own export.

    Returns:
        The folder, and what was found equal.

    Raises:
        NLTError: the run has no such form, a package is missing, or a way of loading gives other embeddings.
    """
    check_choice("form", form, ExportForm)
    if not (run / ENCODER).is_dir():
        raise NLTError(f"{run} has no finished encoder; run `nlt train` with this recipe first")
    trained = Probe.load(run / PROBE_FILE)
    if form in RUNTIMES:
        return _export_runtime(run, form, trained)
    folder = _adapter(run) if form == "adapter" else _merged(run)
    return folder, check_parity(folder, trained)


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_WEIGHTS).is_file()


def _adapter(run: Path) -> Path:
    for folder in (run / ENCODER, run / "adapter"):
        if _is_adapter(folder):
            return folder
    lora = read_json(run / "settings.json", stage="nlt train")["model"]["lora"]
    raise NLTError(
        f"{run} has no adapter to export: it was trained without lora"
        if not lora
        else f"{run} has no adapter to export: it would name its base without the revision or the adapter under it; "
        "export merged"
    )


def _merged(run: Path) -> Path:
    if not _is_adapter(run / ENCODER):
        return run / ENCODER
    with loading("encoder", str(run / ENCODER)):
        encoder = SentenceTransformer(str(run / ENCODER), device="cpu").float()
    merge_lora(encoder)
    transformer: Any = encoder.transformers_model
    with atomic_folder(run / "merged") as partial:
        encoder.save_pretrained(str(partial))
        # transformers has renamed the weights after those of an adapter, under which nobody finds them: write again
        transformer.save_pretrained(partial, save_original_format=False)
    return run / "merged"


def _export_runtime(run: Path, form: str, trained: Probe) -> tuple[Path, list[str]]:
    """Export through Sentence-Transformers' backend of the same name."""
    merged = _merged(run)
    if not _installed(RUNTIMES[form]) or not _installed("optimum"):
        raise NLTError(
            f"form {form} needs the extra sentence-transformers[{form}], which is not installed, and which takes an "
            f"older transformers than nlt_trainer does. In an environment of its own: pip install "
            f"'sentence-transformers[{form}]', then python -c 'from sentence_transformers import SentenceTransformer "
            f'as S; S("{merged}", backend="{form}").save_pretrained("{run / form}")\''
        )
    encoder = SentenceTransformer(str(merged), device="cpu", backend=form)  # type: ignore[arg-type]
    _save(run / form, encoder)
    return run / form, check_parity(run / form, trained, backend=form)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False
