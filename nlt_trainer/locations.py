"""Find the model that a recipe names: a Hub id, a local folder, a GGUF file, or a file in an installed package."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import changed_file, file_hash, saved_hashes
from nlt_trainer.files import FOLDER_MARK, RECORD_FILE, atomic_folder, cache_folder
from nlt_trainer.hub_calls import explain, raise_of_disk
from nlt_trainer.text_files import write_json

logger = logging.getLogger(__name__)

PACKAGE_SCHEME = "package:"


def resolve_model(name: str) -> str:
    """Turn a model's name in a recipe into what `from_pretrained` takes.

    Args:
        name: `org/model` (a Hub id), a local folder, a `.gguf` file (converted once into the user's cache), or
            `package:<module>/<path>`: a folder or a `.gguf` file inside an installed Python package.

    Returns:
        A Hub id or the path of a local folder.

    Raises:
        NLTError: the package or the path inside it is missing, a local path does not exist, or it is a server.
    """
    path = local_path(name)
    if path is None:
        return name
    return str(convert_gguf(path) if path.suffix == ".gguf" else path)


def local_path(name: str) -> Path | None:
    """The file or folder that a model's name stands for; `None` for a Hub id. It raises as `resolve_model` does."""
    if is_hub_id(name):
        return None
    if is_server(name):
        raise NLTError(
            f"model {name!r} is a server, which is asked for nothing but the likelihoods that nlt score needs; here "
            "weights are needed, so name a model on this machine or on the Hub"
        )
    path = _path_in_package(name) if name.startswith(PACKAGE_SCHEME) else Path(name).expanduser()
    if not path.exists():
        raise NLTError(f"model {name!r}: {path} does not exist. {_remedy(name)}")
    return path


def is_server(name: str) -> bool:
    """Whether the name of an LLM is the address of a server."""
    return name.startswith(("http://", "https://"))


def is_hub_id(name: str) -> bool:
    """Whether a name stands for a repository of the Hub, and not for a path on this machine.

    It stands for a repository if three things hold: the Hub allows such a name (ORG/NAME or NAME alone), no file or
    folder in the working directory has this name, and it does not end in `.gguf`. The Hub itself is not asked.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(".gguf") and not Path(name).exists()


def adapter_base(location: str) -> str:
    """The name of the base model that goes into the configuration of an adapter.

    Args:
        location: what `resolve_model` returned.

    Returns:
        The location; a relative path gets `./` before it. From another working directory such a path is reported as
        missing, while without `./` it would be taken for a Hub id.
    """
    path = Path(location)
    return f"./{path.as_posix()}" if path.is_dir() and not path.is_absolute() else location


@contextmanager
def loading(what: str, name: str, *, revision: str | None = None) -> Iterator[None]:
    """Turn any error inside the block into one that says which model cannot be loaded, and why.

    Args:
        what: the kind of model, for example "LLM".
        name: the model's name in the recipe.
        revision: of a Hub model.

    Raises:
        NLTError: in place of every other exception.
        OSError: the disk is full, may not be read or written, or fails.
    """
    try:
        yield
    except NLTError:
        raise
    except Exception as error:  # for half a file safetensors and tokenizers raise errors without a common base
        raise_of_disk(error)
        raise NLTError(f"{what} {name!r} cannot be loaded: {explain(error, name, revision=revision)}") from error


def _remedy(name: str) -> str:
    """Say what to give in place of a path that does not exist."""
    if name.startswith(PACKAGE_SCHEME):
        return "Correct the path inside the package."
    if name.endswith(".gguf"):
        return (
            "Give the path of a .gguf file on this machine; `hf download ORG/MODEL FILE.gguf --local-dir DIR` fetches "
            "one from the Hub."
        )
    return "Give a Hub id (org/model) or the path of a model folder."


def _path_in_package(name: str) -> Path:
    module, _, inside = name.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        spec = importlib.util.find_spec(module)  # finds the folder without importing the package
    except (ModuleNotFoundError, ValueError):  # the part before a dot does not exist, or the name is empty
        spec = None
    if spec is None or not spec.submodule_search_locations:
        near = difflib.get_close_matches(module, importlib.metadata.packages_distributions(), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "correct it, or install the distribution that has it"
        raise NLTError(f"model {name!r}: no package that is imported as {module!r} is installed; {remedy}")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file once into a model folder in the user's cache, with float32 weights.

    A model that was loaded from GGUF cannot be saved by `save_pretrained`. Its weights are therefore copied into a
    model that is made from the same configuration without quantisation. A record in the folder has hashes of its
    files. Where one has changed since, the folder is made again.
    """
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "blake2b").hexdigest()[:12]
    target = cache_folder() / "models" / f"{path.stem}-{digest}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # one of several processes converts, and the others wait
        if not target.is_dir():
            _write_converted(path, target)
        elif not (target / RECORD_FILE).is_file():  # version 0.1 has kept no hashes
            write_json(target / RECORD_FILE, {"files": _file_hashes(target)})
        elif (fault := _fault(target, _state(target))) is not None:
            logger.warning("%s, which was made of %s, is damaged and made again: %s", target, path, fault)
            _write_converted(path, target)
    return target


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each file in a folder."""
    return tuple(sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir()))


@cache
def _fault(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str | None:
    """What is wrong with a converted model; a process reads its files once for each state that they are in."""
    try:
        hashes = saved_hashes(folder)
    except DataError as error:
        return str(error)
    changed = changed_file(folder, hashes) if hashes else folder / RECORD_FILE
    return None if changed is None else f"{changed.name} is not as it was written"


def _file_hashes(folder: Path) -> dict[str, str]:
    return {file.name: file_hash(file) for file in sorted(folder.iterdir()) if file.name != FOLDER_MARK}


def _write_converted(path: Path, target: Path) -> None:
    logger.info("converting %s to %s", path.name, target)
    with loading("GGUF file", str(path)):
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype="float32", trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    config = copy.deepcopy(loaded.config)  # reading it from the file again takes seconds
    del config.quantization_config
    config.architectures = [type(loaded).__name__]
    config.dtype = "float32"
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    with atomic_folder(target, stage="conversion of a GGUF file") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / RECORD_FILE, {"files": _file_hashes(folder)})
