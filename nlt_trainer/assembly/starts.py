"""The stages `build_stdlib` and `make_encoder`, which write a collection and an untrained encoder to start from."""

from __future__ import annotations

from pathlib import Path

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.parts import processes
from nlt_trainer.data.stdlib import build_stdlib_collection
from nlt_trainer.encoder.loading import encoder_from_token_embeddings
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_folder, check_folder
from nlt_trainer.locations import PACKAGE_SCHEME, is_hub_id
from nlt_trainer.release.licences import model_licence
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments


def make_encoder(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Write the Sentence-Transformers folder that the recipe's `encoder` names, from the recipe's `llm`.

    Raises:
        NLTError: `encoder` names a model in a package, or a name that looks like one on the Hub, and not a folder; or
            a folder that is not replaced, see `check_folder`.
    """
    if not processes(args).is_main_process:
        return
    if model.encoder.startswith(PACKAGE_SCHEME):
        raise NLTError(f"encoder {model.encoder!r} is a model in a package; name a folder to write the new encoder to")
    if is_hub_id(model.encoder) and not Path(model.encoder).parent.is_dir():
        raise NLTError(
            f"encoder {model.encoder!r} looks like a model on the Hub, which a folder of this name would hide; name a "
            f"folder to write the new encoder to, e.g. ./{model.encoder}"
        )
    check_folder(Path(model.encoder), stage="nlt make_encoder")
    encoder = encoder_from_token_embeddings(model.llm)
    encoder.model_card_data.license = model_licence(model.llm)
    with atomic_folder(model.encoder, stage="nlt make_encoder") as folder:
        encoder.save_pretrained(str(folder))
    say(f"{model.encoder}: token embeddings of {model.llm}, {encoder.get_embedding_dimension()} dimensions")


def build_stdlib(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Write the running interpreter's standard library as the BEIR folder that the recipe's `collection` names."""
    if not processes(args).is_main_process:
        return
    collection = build_stdlib_collection(data.collection)
    splits = ", ".join(f"{name} {len(qrels)}" for name, qrels in collection.qrels.items())
    say(f"{data.collection}: {len(collection.corpus)} functions; queries: {splits}")
