"""What `nlt adapt` works on: its blocks and files, its recipe, and the settings on which each stage depends."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nlt_trainer.adapt.collection import DEV, HELD_OUT, TRAIN
from nlt_trainer.arguments.adapt import AdaptArguments
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.inherited import CHOOSING, DECIDING
from nlt_trainer.arguments.model import ModelArguments, start_options
from nlt_trainer.arguments.option import options_deciding
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.content import model_content
from nlt_trainer.errors import NLTError
from nlt_trainer.files import CORPUS_FILE, atomic_write
from nlt_trainer.recipe.outputs import check_outputs
from nlt_trainer.release.card_rendering import dump_recipe
from nlt_trainer.run.folder import Run, changed_settings
from nlt_trainer.run.resume import decisive, heads_content, llm_content, trainer_settings
from nlt_trainer.text_files import read_json
from nlt_trainer.training_arguments import NLTTrainingArguments

OWN_KEYS = (
    "collection",
    "train_split",
    "candidates",
    "gains",
    "score_cache",
    "dev_split",
    "eval_split",
    "max_queries",
)
"""Keys of the data block that `nlt adapt` sets itself, as it does `output_dir`."""

FURTHER_KEYS = (*CHOOSING, "output_dir", "use_cpu", "bf16_full_eval", "logging_steps", "save_total_limit")
"""Keys of the library in the trainer block that the written recipe has beside those that decide the training."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The blocks of the recipe, with the files that `nlt adapt` writes in its output folder.

    Args:
        model: block `model:`.
        data: block `data:`.
        args: block `trainer:`.
        options: block `adapt:`.
    """

    model: ModelArguments
    data: DataArguments
    args: NLTTrainingArguments
    options: AdaptArguments

    @property
    def run(self) -> Run:
        return Run(self.options.output)

    @property
    def documents(self) -> Path:
        """BEIR folder of the documents alone, as a search reads them."""
        return self.run.folder / "documents"

    @property
    def embeddings(self) -> Path:
        """Embeddings of the corpus, which mining and the decision share."""
        return self.run.folder / "embeddings"

    @property
    def length_file(self) -> Path:
        """How many tokens of a passage the encoder reads, and how that was chosen."""
        return self.run.folder / "length.json"

    @property
    def judging(self) -> DataArguments:
        """The data block with which the held-out queries get candidates and gains."""
        folder = self.run.folder / HELD_OUT
        return dataclasses.replace(
            self.data,
            train_split=HELD_OUT,
            candidates=str(folder / "candidates.jsonl"),
            gains=str(folder / "gains.jsonl"),
        )


def prepared(
    model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, options: AdaptArguments
) -> Adaptation:
    """Point the recipe at the files in the output folder.

    Raises:
        NLTError: the recipe sets a key that `nlt adapt` sets itself.
    """
    default, unset = DataArguments(), NLTTrainingArguments(use_cpu=args.use_cpu).output_dir
    given = [key for key in OWN_KEYS if getattr(data, key) != getattr(default, key)]
    if given := given + ["output_dir"] * (args.output_dir != unset):
        raise NLTError(f"{given[0]} is set, and adapt writes its own files into {options.output}; leave it out")
    folder = Path(options.output)
    args = dataclasses.replace(args, output_dir=str(folder))
    data = dataclasses.replace(
        data,
        collection=str(folder / "collection"),
        candidates=str(folder / "candidates.jsonl"),
        gains=str(folder / "gains.jsonl"),
        score_cache=str(folder / "scores"),
        train_split=TRAIN,
        dev_split=DEV if chooses(args) else HELD_OUT,
        eval_split=HELD_OUT,
    )
    return Adaptation(model, data, args, options)


def check_inputs(work: Adaptation) -> None:
    """Refuse an input that `nlt adapt` would replace.

    Raises:
        NLTError: the documents, the queries or a model lie where something is written in the output folder.
    """
    run = work.run
    inside = (path.relative_to(run.folder) for path in (run.encoder, work.documents, work.embeddings))
    writes: list[str | Path] = ["collection", "candidates", "gains", *(Path("output", path) for path in inside)]
    check_outputs(writes, (work.options, work.model, work.data))


def with_length(work: Adaptation) -> Adaptation:
    """The same with the number of tokens that was chosen for the encoder, if it was not the encoder's own."""
    if work.model.max_seq_length is not None or not work.length_file.is_file():
        return work
    chosen = read_json(work.length_file)["max_seq_length"]
    return dataclasses.replace(work, model=dataclasses.replace(work.model, max_seq_length=chosen))


def chooses(args: NLTTrainingArguments) -> bool:
    """Whether training chooses by judged queries what it saves."""
    return args.average_with_start == "auto" or bool(args.load_best_model_at_end)


def blocks(work: Adaptation) -> tuple[ModelArguments, DataArguments, NLTTrainingArguments]:
    """The blocks that the stages take."""
    return work.model, work.data, work.args


def write_recipe(work: Adaptation) -> None:
    """Write the recipe with which each stage can be run alone."""
    values = work.args.to_dict()
    names = [*options_deciding("training", "result", "nothing", of=TrainerArguments), *sorted(DECIDING), *FURTHER_KEYS]
    settings = {
        "model": dataclasses.asdict(work.model),
        "data": dataclasses.asdict(work.data),
        "trainer": {name: values[name] for name in names if name in values},
    }
    changed = changed_settings(settings)
    recipe = {block: {k: v for k, v in values.items() if k in changed} for block, values in settings.items()}
    with atomic_write(work.run.recipe_file) as handle:
        handle.write(f"# nlt train --config {work.run.recipe_file}\n{dump_recipe(recipe)}")


def of_queries(work: Adaptation, models: str) -> str:
    """The settings on which the queries depend; with `models`, those of mining and scoring, where an LLM writes."""
    options = work.options
    made = models if options.queries in ("llm", "both") else ""
    number, held_out = options.numbers
    return f"{options.queries} {number} {held_out} {work.args.seed} {made}"


def of_mining(work: Adaptation) -> str:
    """The settings on which the candidates depend."""
    model = work.model
    content = model_content(model.encoder, revision=model.encoder_revision)
    encoder = {"encoder": content} | start_options(vars(model))
    index = "" if work.data.index == "exact" else f" {work.data.index}"  # version 0.1 had no other
    numbers = f"{work.data.num_candidates} {work.args.seed} {work.args.bf16_full_eval}"
    return f"{encoder} {work.data.miner}{index} {numbers}"


def of_scoring(work: Adaptation) -> str:
    """The settings on which the gains depend."""
    parts = decisive(work.model, "llm"), decisive(work.data, "llm"), llm_content(work.model)
    return f"{parts} {work.data.token_likelihoods}"


def of_training(work: Adaptation) -> str:
    """The settings on which the saved encoder depends, beside those of mining and scoring."""
    model, data, args = blocks(work)
    parts = decisive(model, "start"), decisive(data, "training", "result"), trainer_settings(args)
    return f"{parts} {model.merge_lora} {heads_content(model, args)}"


def inputs(work: Adaptation) -> list[Path]:
    """The files on which the collection depends."""
    files = [] if work.options.makes_queries else [Path(work.options.queries)]
    return [work.documents / CORPUS_FILE, *files]
