"""Hash the content of a model: of a folder, of any model that a recipe names, or of an encoder in memory.

Caches need such a hash, so that a result is never taken for that of another model. The content of a model is its
weights, every configuration file, the files and settings of its tokenizer, chat templates, and the folders of a
Sentence-Transformers model's modules. Cards, records of training and evaluation, states of optimizers, checkpoints
beside the model and hidden folders are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download

from nlt_trainer.errors import DataError
from nlt_trainer.file_hashes import changed_file, file_hash, saved_hashes
from nlt_trainer.files import CHECKSUMS_FILE, RECORD_FILE, TRAINED_QUERIES_FILE
from nlt_trainer.locations import loading, resolve_model
from nlt_trainer.text_files import read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WEIGHTS_AND_CONFIGURATIONS = {".safetensors", ".bin", ".json"}
TOKENIZER_FILES = {".model", ".txt", ".jinja", ".spm", ".codes", ".tokenizer", ".tiktoken"}
"""Endings of the files in which the tokenizers of transformers keep vocabularies, merges and chat templates."""
RECORDS = {
    RECORD_FILE,
    TRAINED_QUERIES_FILE,
    "trainer_state.json",
    "training_args.bin",
    "optimizer.bin",
    CHECKSUMS_FILE,
}
"""Files that have such endings but only say how a model was made or how good it is."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a PEFT adapter."""
CHAT_TEMPLATES = "additional_chat_templates"
"""Folder in which transformers keeps all chat templates except the first."""


def content_hash(folder: str | Path) -> str:
    """Hash of the files of a local folder that belong to a model (16 hex digits).

    Raises:
        DataError: `modules.json` is malformed.
    """
    folder, total = Path(folder), hashlib.blake2b(digest_size=8)
    for file in _model_files(folder):
        with file.open("rb") as handle:
            name = file.relative_to(folder).as_posix()
            total.update(name.encode() + hashlib.file_digest(handle, "blake2b").digest())
    return total.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    """The files of a local folder that belong to a model, in the order of their names."""
    subfolders, found = _module_folders(folder) | {CHAT_TEMPLATES}, [*folder.glob("*")]
    below = (_files_below(path, above=[folder.resolve()]) for path in found if path.name in subfolders)
    for file in sorted([*found, *chain.from_iterable(below)]):
        if any(place.startswith(".") for place in file.relative_to(folder).parts[:-1]):
            continue
        belongs = file.suffix in WEIGHTS_AND_CONFIGURATIONS | TOKENIZER_FILES and file.name not in RECORDS
        if belongs and file.is_file():
            yield file


def _files_below(folder: Path, *, above: Sequence[Path]) -> Iterator[Path]:
    """All files below a folder, those in linked folders too; a link back to one of those above is not followed."""
    own = folder.resolve()
    if folder.is_dir() and own not in above:
        for path in folder.iterdir():
            if path.is_dir():
                yield from _files_below(path, above=[*above, own])
            else:
                yield path


def file_hashes(folder: Path) -> dict[str, str]:
    """Hashes of a model's files, by their path in its folder."""
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in _model_files(folder)}


def record_files(folder: Path) -> None:
    """Write a record with the hashes of a model's files, so that `check_files` knows when one of them has changed."""
    write_json(folder / RECORD_FILE, {"files": file_hashes(folder)}, checksum=True)


def check_files(folder: Path) -> None:
    """Refuse a model of which a file is not as it was saved; the record beside the files has their hashes.

    A folder without such a record, as other programs have written it, is not checked.

    Raises:
        DataError: a file has changed or is missing, or the record is malformed; names the file and the remedy.
    """
    if (file := changed_file(folder, saved_hashes(folder))) is not None:
        raise DataError(
            file,
            "is not as it was saved, a disk or a copy has changed it; copy the folder again or repeat the stage that "
            f"wrote it, or remove {folder / RECORD_FILE} if you have changed the file yourself",
        )


def _module_folders(folder: Path) -> set[str]:
    """Subfolders of the modules of a Sentence-Transformers model; empty if the folder holds no such model."""
    modules, router = folder / "modules.json", folder / "router_config.json"
    if not modules.is_file():
        return set()
    try:
        paths = [module["path"] for module in read_json(modules, kind=list)]
    except (KeyError, TypeError) as error:
        raise DataError(modules, f"is no list of modules ({error!r}); fetch or save the model again") from error
    if router.is_file():
        paths += read_json(router).get("types", [])
    return {part for path in paths for part in Path(path).parts[:1]}


def model_content(name: str, *, revision: str | None = None, base: bool = True) -> str:
    """Identify a model by its content: the hash of a folder, or Hub id and commit; for an adapter also its base.

    Args:
        name: anything that `resolve_model` takes.
        revision: of a Hub model.
        base: whether the base that an adapter names counts. An LLM's adapter is put on an LLM that has a hash of its
            own, so its base does not count.

    Raises:
        NLTError: the model cannot be found.
    """
    location = resolve_model(name)
    folder = Path(location)
    if folder.is_dir():
        content = content_hash(folder)
    else:
        with loading("model", name, revision=revision):
            small = ["config.json", ADAPTER_CONFIG]  # enough to learn the commit to which the revision points
            folder = Path(snapshot_download(location, revision=revision, allow_patterns=small))
        content = f"{location}@{folder.name}"
    if not base or not (folder / ADAPTER_CONFIG).is_file():
        return content
    adapter = read_json(folder / ADAPTER_CONFIG)
    return f"{content} on {model_content(adapter['base_model_name_or_path'], revision=adapter.get('revision'))}"


def encoder_content(encoder: SentenceTransformer) -> str:
    """Hash of everything on which the embeddings of an encoder in memory depend (16 hex digits).

    These are its tensors with their dtypes, and the settings of its modules, model, tokenizer, prompts and lengths.
    The function that compares two embeddings is not part of the hash.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from sentence_transformers.base.modules import InputModule
    from transformers import PreTrainedModel

    settings: list[Any] = [str(encoder), encoder.max_seq_length, encoder.truncate_dim]
    settings += [encoder.prompts, encoder.default_prompt_name]
    for name, module in encoder.named_modules():
        if isinstance(module, InputModule):
            settings.append([name, _tokenizer_settings(module.tokenizer)])
        elif isinstance(module, PreTrainedModel):
            settings.append([name, {**module.config.to_dict(), "_name_or_path": None}])
        elif isinstance(module, LoraLayer):
            settings.append([name, module.scaling, module.active_adapters, module.disable_adapters])
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_settings(tokenizer: Any) -> list[Any]:
    """All settings of a tokenizer that decide into which tokens it cuts a text."""
    from sentence_transformers.sentence_transformer.modules.tokenizer import (
        TransformersTokenizerWrapper,
        WordTokenizer,
    )
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, Tokenizer):  # of a `StaticEmbedding`; truncation is among its settings
        return [tokenizer.to_str()]
    if isinstance(tokenizer, TransformersTokenizerWrapper):
        tokenizer = tokenizer.tokenizer
    elif isinstance(tokenizer, WordTokenizer):  # of a table of word vectors
        values = {name: sorted(v) if isinstance(v, set) else v for name, v in vars(tokenizer).items()}
        return [type(tokenizer).__name__, values]
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # each call sets truncation and padding of the backend anew, from the settings below
        vocabulary: Any = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    else:
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            vocabulary = content_hash(folder)
    sides = [tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length]
    inputs = [tokenizer.model_input_names, tokenizer.split_special_tokens, tokenizer.chat_template]
    return [type(tokenizer).__name__, sides, inputs, tokenizer.special_tokens_map, vocabulary]
