"""Let a run resume where it stopped, and refuse to mix with a run of other settings or to replace what it made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import reduce
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.inherited import CHOOSING, DECIDING
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.option import Decides, options_deciding
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.content import model_content
from nlt_trainer.data.candidates import candidates_hash
from nlt_trainer.encoder.lora import ADAPTER_WEIGHTS, load_lora
from nlt_trainer.errors import NLTError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.dtypes import resolved_dtype
from nlt_trainer.locations import is_server
from nlt_trainer.run.checkpoints import best_checkpoint, check_best, checkpoint_fault, last_checkpoint
from nlt_trainer.run.folder import Run, option_defaults
from nlt_trainer.text_files import read_json
from nlt_trainer.training_arguments import NLTTrainingArguments


def run_settings(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> dict[str, Any]:
    """The settings of a run: its recipe, for the model card, and its trajectory, which a run that resumes must share.

    The files of candidates and gains are those of the start; what a refresh writes follows from the trajectory.

    Each option's declaration says whether it decides the trajectory, see `nlt_trainer.arguments.option.Decides`. Files
    count by their content, so that a run whose gains, candidates or start have changed is not taken for the same.
    """
    files: dict[str, str | Path] = {"corpus": Path(data.collection, "corpus.jsonl")}
    if args.reads_gains(data):
        files["gains"] = data.gains
    if args.reads_labels(data):
        files["qrels"] = Path(data.collection, "qrels", f"{data.train_split}.tsv")
    reads_llm = args.reads_llm or (args.refresh is not None and args.reads_gains(data))
    decides: tuple[Decides, ...] = ("start", "training", "llm") if reads_llm else ("start", "training")
    trajectory = decisive(model, *decides) | decisive(data, *decides) | trainer_settings(args, ("training",))
    trajectory |= llm_content(model) if reads_llm else {}
    mining = {"miner": data.miner, "index": data.index, "bf16_full_eval": args.bf16_full_eval}
    trajectory |= {} if args.refresh is None else mining
    trajectory |= {"processes": args.world_size} | candidates_content(data) | file_contents(files)
    trajectory |= heads_content(model, args)
    trajectory["content of encoder"] = model_content(model.encoder, revision=model.encoder_revision)
    return {
        "model": dataclasses.asdict(model),
        "data": dataclasses.asdict(data),
        "trainer": trainer_settings(args) | {"bf16_full_eval": args.bf16_full_eval},
        "trajectory": trajectory,
    }


def adaptation_settings(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> dict[str, Any]:
    """The trajectory of a run of `adapt_scorer`, which has no encoder and no objective."""
    files: dict[str, str | Path] = {"corpus": Path(data.collection, "corpus.jsonl")}
    if data.adapt_pairs:
        files["gains"] = data.gains
    values = args.to_dict()
    trajectory = {key: values[key] for key in sorted(DECIDING) if key in values}
    trajectory |= decisive(model, "llm", "adaptation") | decisive(data, "llm", "adaptation") | llm_content(model)
    trajectory |= file_contents(files) | (candidates_content(data) if data.adapt_pairs else {})
    return {"trajectory": trajectory}


def trainer_settings(
    args: NLTTrainingArguments, decides: tuple[Decides, ...] = ("training", "result")
) -> dict[str, Any]:
    """The options of the block `trainer:` that decide the trajectory or what is saved of it, the objective's first."""
    values = args.to_dict()
    names = [*options_deciding(*decides, of=TrainerArguments), *sorted(DECIDING)]
    if "result" in decides and args.load_best_model_at_end:
        names += CHOOSING
    return {name: values[name] for name in names if name in values}


def llm_content(model: ModelArguments) -> dict[str, str | None]:
    """What the LLM is, its adapter, and the dtype that `auto` means on this machine; of one on a server, its names."""
    if is_server(model.llm):
        return {"llm_model": model.llm_model, "llm_tokenizer": model.llm_tokenizer}
    content: dict[str, str | None] = {
        "llm_dtype": resolved_dtype(model.llm_dtype, model.llm_device),
        "content of llm": model_content(model.llm, revision=model.llm_revision),
    }
    return content | ({"content of adapter": model_content(model.adapter, base=False)} if model.adapter else {})


def heads_content(model: ModelArguments, args: NLTTrainingArguments) -> dict[str, Any]:
    """The heads that the objective reads; the file also says how long it took to find them."""
    if "dream" not in args.objectives or not Path(model.heads).is_file():
        return {}
    return {"heads": [list(pair) for pair in HeadSet.load(model.heads).heads]}


def decisive(arguments: Any, *what: Decides) -> dict[str, Any]:
    """The options of a block that decide the given parts, with their values."""
    return {name: getattr(arguments, name) for name in options_deciding(*what, of=type(arguments))}


def file_contents(files: Mapping[str, str | Path]) -> dict[str, str | None]:
    """Hash of what a file of each role holds; `None` for a missing file, which is reported where it is read."""
    paths = {role: Path(file) for role, file in files.items()}
    return {f"content of {role}": file_hash(path) if path.is_file() else None for role, path in paths.items()}


def candidates_content(data: DataArguments) -> dict[str, str | None]:
    """Hash of the candidates; the texts to which they belong are those of the corpus, whose content counts, too."""
    path = Path(data.candidates)
    return {"content of candidates": candidates_hash(path) if path.is_file() else None}


def check_settings(folder: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to resume from, if there is one. Checkpoints and results of another trajectory are refused.

    Raises:
        NLTError: the folder has checkpoints, an encoder or an LLM's adapter of another run, and the message names what
            differs; or of a run whose settings are missing.
    """
    run, checkpoint = Run(folder), last_checkpoint(folder)
    remedy = "choose another output_dir or remove the folder"
    if checkpoint is not None or run.is_finished or run.adaptation_file.is_file():
        if not run.settings_file.is_file():
            raise NLTError(
                f"{folder} holds a run, and {run.settings_file.name}, which says with which settings, is missing; put "
                f"it back, {remedy}"
            )
        _check_trajectory(folder, settings, remedy=remedy)
    return checkpoint


def is_another_training(run: Run, settings: dict[str, Any]) -> bool:
    """Whether the checkpoints of a run are of no use under other settings, or nothing is known of them.

    They are not where the trajectory is another one. Where the best checkpoint is saved, the options that choose it
    count too, because the checkpoints may not have been evaluated.
    """
    told = "it has the settings of the training in this folder; remove it, and training begins anew"
    earlier = read_json(run.settings_file, remedy=told) if run.settings_file.is_file() else {}
    choosing = {key: value for key, value in settings["trainer"].items() if key in CHOOSING}
    found = (earlier.get(block, {}) for block in ("trajectory", "trainer"))
    return any(_differences(there, now) for there, now in zip(found, (settings["trajectory"], choosing), strict=True))


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words. An option that was not there yet when the settings were written had its default."""
    there = {**option_defaults(), **there}
    return [f"{key}: {there.get(key)!r} there, {value!r} now" for key, value in now.items() if there.get(key) != value]


def _check_trajectory(folder: Path, settings: dict[str, Any], *, remedy: str) -> None:
    told = "it has the settings of the run in this folder; put it back as it was, or name another folder"
    found = read_json(Run(folder).settings_file, remedy=told).get("trajectory", {})
    if different := _differences(found, settings["trajectory"]):
        raise NLTError(f"{folder} holds a run with other settings ({'; '.join(different)}); {remedy}")


def start_checkpoint(args: TrainingArguments, settings: dict[str, Any]) -> str | None:
    """The checkpoint that a run resumes from: `resume_from_checkpoint`, else the last whole one of `output_dir`.

    Raises:
        NLTError: the checkpoint that was named is not whole, either folder has checkpoints of another run, or the
            best checkpoint so far, which is to be saved, is not whole.
    """
    last = check_settings(Path(str(args.output_dir)), settings)
    checkpoint = last if args.resume_from_checkpoint is None else _named_checkpoint(args, settings)
    if checkpoint is not None and args.load_best_model_at_end:
        state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        state.best_model_checkpoint = best_checkpoint(state, beside=Path(checkpoint))
        check_best(state)
    return checkpoint


def _named_checkpoint(args: TrainingArguments, settings: dict[str, Any]) -> str:
    """The checkpoint in `resume_from_checkpoint`, which is refused as `start_checkpoint` says."""
    named = Path(str(args.resume_from_checkpoint))
    fault = checkpoint_fault(named)
    settings_file = Run(named.parent).settings_file
    if fault is None and not settings_file.is_file():
        fault = f"{settings_file.name} of its run is missing beside it"
    if fault is not None:
        raise NLTError(
            f"resume_from_checkpoint: {named} is no whole checkpoint of a run ({fault}); name another, or leave the "
            f"option out: a run goes on from the last whole checkpoint of {args.output_dir} by itself"
        )
    _check_trajectory(named.parent, settings, remedy="set them as they were, or leave resume_from_checkpoint out")
    return str(named)


class Reader(Protocol):
    """What reads the LLM in training: an objective, or a refresh of the candidates."""

    @property
    def lm_tokens(self) -> int: ...


class CostCallback(TrainerCallback, ExportableState):
    """Counts the seconds and LLM tokens of training, also those before it resumed, and adds them to each log entry.

    Args:
        *readers: whose LLM tokens are counted, over all processes.
    """

    def __init__(self, *readers: Reader) -> None:
        self.readers = readers
        self.cost: dict[str, float] = {}
        self._earlier = self.cost
        self._begin = time.monotonic()

    def state(self) -> dict[str, Any]:
        """The costs, as a checkpoint keeps them."""
        return {"args": {}, "attributes": {"cost": self.cost}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks  # by class name, as a checkpoint has them
        self._earlier = states.get(type(self).__name__, self.state())["attributes"]["cost"]
        self._begin = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._count(args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._count(args)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._count(args)
        if state.log_history:
            state.log_history[-1].update(self.cost)

    def _count(self, args: TrainingArguments) -> None:
        seconds = self._earlier.get("train_seconds", 0) + time.monotonic() - self._begin
        self.cost = {"train_seconds": round(seconds, 1)}
        if self.readers:
            own = torch.tensor(sum(reader.lm_tokens for reader in self.readers), device=args.device)
            self.cost["lm_tokens"] = self._earlier.get("lm_tokens", 0) + int(reduce(own, reduction="sum"))


class AdapterCallback(TrainerCallback):
    """Gives a LoRA run the weights of a checkpoint, when it resumes from one and when it ends with the best one.

    From a checkpoint the trainer reads the base as the Hub's main branch has it, which may be another revision. It
    reads the adapter in the base's dtype, which may round it to bfloat16. This callback puts both right.

    Args:
        encoder: the encoder that is trained, as it was loaded. Without an adapter nothing happens.
        checkpoint: the checkpoint that the run resumes from; `None` where it begins anew.
        loads_best: whether the trainer reads the best checkpoint in the end.
    """

    def __init__(self, encoder: SentenceTransformer, checkpoint: str | None, *, loads_best: bool = False) -> None:
        self.encoder, self.checkpoint, self.loads_best = encoder, checkpoint, loads_best
        resumes = checkpoint is not None and Path(checkpoint, ADAPTER_WEIGHTS).is_file()
        reads = resumes or (loads_best and any("lora_" in name for name, _ in encoder.named_parameters()))
        frozen = encoder.named_parameters() if reads else ()
        self.base = {name: p.detach().cpu().clone() for name, p in frozen if not p.requires_grad}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore(self.checkpoint)
        if not self.loads_best:
            self.base.clear()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.loads_best:
            self._restore(state.best_model_checkpoint)
            self.base.clear()

    def _restore(self, checkpoint: str | None) -> None:
        if checkpoint is None or not Path(checkpoint, ADAPTER_WEIGHTS).is_file():
            return
        for name, parameter in self.encoder.named_parameters():
            if name in self.base:
                parameter.data.copy_(self.base[name])
        load_lora(self.encoder, checkpoint)


def logged_cost(state: TrainerState, name: str) -> float:
    """Seconds or LLM tokens of training that the log has recorded."""
    return max((entry.get(name, 0) for entry in state.log_history), default=0)
