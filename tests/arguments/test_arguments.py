"""Sums of objectives in a recipe, and which data they read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import SchedulerType, get_scheduler

from nlt_trainer.arguments import stages
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.inherited import CHOOSING, DECIDING, OTHER, REFUSED
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.option import Decides
from nlt_trainer.arguments.search import AppArguments
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.arguments.trainer import LLM_OBJECTIVES, OBJECTIVES, parse_objective, parse_refresh
from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.keys import KnownKeys
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.training_arguments import WITHOUT_WARMUP, NLTTrainingArguments


def arguments(tmp_path: Path, **settings: Any) -> NLTTrainingArguments:
    return NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dream", {"dream": 1.0}),
        ("likelihood_gain + 0.5*dream", {"likelihood_gain": 1.0, "dream": 0.5}),
        ("2*emdr2+info_nce", {"emdr2": 2.0, "info_nce": 1.0}),
        (" 1e-2 * dream  +  .5 * emdr2 ", {"dream": 0.01, "emdr2": 0.5}),
    ],
)
def test_a_sum_is_read(text: str, expected: dict[str, float]) -> None:
    """Reference: weights by hand, in the order of the terms."""
    found = parse_objective(text)
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("likelihood_gian", r"objective 'likelihood_gian' is unknown; did you mean likelihood_gain\?"),
        ("dream + emdr", r"objective 'emdr' in 'dream \+ emdr' is unknown; did you mean emdr2\?"),
        ("xyz", r"objective 'xyz' is unknown; choose of likelihood_gain, dream, "),
        ("dream + ", r"objective '' in 'dream \+ ' is unknown"),
        ("dream*0.5", r"objective '0.5' in 'dream\*0.5' is unknown"),
        ("half*dream", r"weight 'half' in 'half\*dream' is not a number; write for example 0.5\*dream"),
        ("0*dream", r"weight 0 in '0\*dream' is not a positive number; leave dream out"),
        ("-1*dream", r"weight -1 in .* is not a positive number"),
        ("nan*dream", r"weight nan in .* is not a positive number"),
        ("dream + 2*dream", r"objective 'dream' stands twice in .*; add its weights"),
    ],
)
def test_a_wrong_sum_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """Reference: the value and the remedy in each message, when the arguments are made."""
    with pytest.raises(NLTError, match=message):
        arguments(tmp_path, objective=text)


def test_a_schedule_of_refreshes_is_read() -> None:
    """Reference: the steps by hand, as Atlas refreshes its index."""
    first, second = parse_refresh("0-1000:500, 1000-10000:2000")
    assert list(first) == [0, 500]
    assert list(second) == [1000, 3000, 5000, 7000, 9000]


@pytest.mark.parametrize(
    "part", ["500", "0-1000", "0:500", "1000-0:500", "5-5:1", "0-1000:0", "0-1000:-5", "a-b:c", ""]
)
def test_a_wrong_schedule_is_refused(part: str, tmp_path: Path) -> None:
    """Reference: the value, the part and the grammar in the message, when the arguments are made."""
    message = rf"^refresh '0-10:5,{part}': '{part}' is no range of steps; write from-to:every .* 0-1000:500,1000-10000"
    with pytest.raises(NLTError, match=message):
        arguments(tmp_path, refresh=f"0-10:5,{part}")


def test_a_prior_that_would_be_subtracted_is_refused(tmp_path: Path) -> None:
    """Reference: the value and the remedy in the message."""
    with pytest.raises(NLTError, match=r"prior_weight is -0.1; it must be at least 0"):
        arguments(tmp_path, prior_weight=-0.1)


def test_a_temperature_of_an_objective_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Reference: the name and the remedy in the message."""
    settings: dict[str, Any] = {"temperatures": {"dream": 0.2}}
    with pytest.raises(NLTError, match=r"temperatures names \['dream'\], which objective 'emdr2' does not have"):
        arguments(tmp_path, objective="emdr2", **settings)
    arguments(tmp_path, objective="emdr2 + dream", **settings)


@pytest.mark.parametrize(
    ("settings", "labels", "gains", "llm", "likelihoods"),
    [
        ({"objective": "likelihood_gain"}, False, True, False, []),
        ({"objective": "dream"}, False, False, True, []),
        ({"objective": "emdr2"}, False, True, False, ["log_likelihood", "target_tokens"]),
        (
            {"objective": "emdr2", "emdr2_level": "token"},
            False,
            True,
            False,
            ["target_tokens", "token_log_likelihoods"],
        ),
        ({"objective": "info_nce"}, False, True, False, []),
        ({"objective": "info_nce"}, True, False, False, []),
        ({"objective": "info_nce", "false_negative_margin": 0.1}, True, True, False, []),
        ({"objective": "info_nce + dream"}, True, False, True, []),
        ({"objective": "0.1*likelihood_gain + dream"}, True, True, True, []),
    ],
)
def test_what_objectives_read(
    tmp_path: Path, settings: dict[str, Any], labels: bool, gains: bool, llm: bool, likelihoods: list[str]
) -> None:
    """Reference: the Inputs table of each objective."""
    args, data = arguments(tmp_path, **settings), DataArguments(labels=labels)
    assert (args.reads_gains(data), args.reads_llm, args.reads_likelihoods) == (gains, llm, likelihoods)
    assert args.reads_labels(data) == (labels and "info_nce" in settings["objective"])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("encoder_dtype", "float32, bfloat16"),
        ("llm_dtype", "auto, float32, bfloat16, float16"),
        ("head_selection", "best, "),
    ],
)
def test_an_unknown_choice_is_refused_before_anything_is_loaded(name: str, known: str) -> None:
    """Reference: the value and the choices in the message."""
    settings: dict[str, Any] = {name: "float23"}
    with pytest.raises(NLTError, match=rf"^{name} 'float23' is unknown; choose one of {known}"):
        ModelArguments(**settings)


@pytest.mark.parametrize("name", ["max_queries", "max_document_tokens", "batch_tokens", "adapt_documents"])
def test_a_number_of_nothing_is_refused(name: str) -> None:
    """Reference: the value and the remedy in the message; 1 is enough."""
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(NLTError, match=rf"^{name} is 0; it must be at least 1$"):
        DataArguments(**settings)
    settings[name] = 1
    DataArguments(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", -1),
        ("gradient_accumulation_steps", 0),
        ("seed", -1),
        ("dataloader_num_workers", -1),
        ("weight_decay", math.nan),
        ("learning_rate", math.nan),
        ("learning_rate", -1e-3),
        ("max_grad_norm", -1.0),
        ("adam_beta1", 1.5),
        ("seed", 2**32),
        ("num_train_epochs", 0.0),
        ("max_steps", 0),
        ("max_steps", -2),
        ("save_steps", 0),
        ("eval_steps", 0),
        ("logging_steps", -1),
        ("num_train_epochs", math.inf),
    ],
)
def test_a_number_that_trains_nothing_is_refused(name: str, value: float, tmp_path: Path) -> None:
    """Reference: the key and the value, in the message."""
    with pytest.raises(NLTError, match=rf"{name} is {value}; it must be "):
        arguments(tmp_path, **{name: value})


def test_no_rate_of_the_mapping_trains_upwards(tmp_path: Path) -> None:
    """Reference: the pattern and the rate, in the message."""
    with pytest.raises(NLTError, match=r"^learning_rate_mapping of '\.\*' is -0.001; it must be"):
        arguments(tmp_path, learning_rate_mapping={".*": -1e-3})
    arguments(tmp_path, learning_rate_mapping={".*": 1e-3})
    arguments(tmp_path, learning_rate_mapping='{".*": 1e-3}')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1e-6}}, r"does not fit lr_scheduler_type linear: .*'min_lr'"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
            r"lr_scheduler_kwargs is \{'min_lr': 1e-06\}, and lr_scheduler_type constant reads none of it",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": -1e-3}},
            r"lr_scheduler_kwargs has min_lr -0.001; it must be a number of at least 0",
        ),
        (
            {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": '{"timescale": NaN}'},
            r"does not fit lr_scheduler_type inverse_sqrt: the learning rate becomes nan times learning_rate",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"does not fit lr_scheduler_type cosine_with_min_lr: "),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "many"}},
            r"lr_scheduler_kwargs is \{'num_cycles': 'many'\}, which does not fit lr_scheduler_type cosine: ",
        ),
        (
            {"optim": "sgd", "optim_args": "speed=3"},
            r"optim_args has 'speed', which optim sgd does not read; leave",
        ),
        ({"optim_args": "momentum=0.9"}, r"optim_args has 'momentum', which optim adamw_torch_fused does not read"),
        ({"optim": "sgd", "optim_args": "momentum"}, r"optim sgd with optim_args 'momentum' cannot be made: "),
        ({"optim": "sgd", "optim_args": "momentum=fast"}, r"optim_args 'momentum=fast' cannot be made: .*'fast'"),
        ({"optim": "sgd", "optim_args": "momentum=-1"}, r"optim_args 'momentum=-1' cannot be made: .*momentum"),
        ({"adam_epsilon": -1.0}, r"optim adamw_torch_fused .* cannot be made: Invalid epsilon value: -1.0"),
        ({"warmup_steps": -1}, r"warmup_steps is -1; it must be a number of at least 0"),
    ],
)
def test_a_schedule_or_an_optimizer_that_cannot_be_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    """Reference: what the library would raise at the first step, or what it would leave unread."""
    with pytest.raises(NLTError, match=message):
        arguments(tmp_path, **given)


@pytest.mark.parametrize(
    "given",
    [
        *({"lr_scheduler_type": kind} for kind in ("constant_with_warmup", "polynomial", "inverse_sqrt")),
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": '{"num_decay_steps": 50}',
            "max_steps": 99,
        },
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"},
        {"optim": "rmsprop", "optim_args": "alpha=0.99,centered=False"},
        *({"optim": optim} for optim in ("adafactor", "adagrad", "adamw_torch", "adamw_bnb_8bit", "galore_adamw")),
    ],
)
def test_a_schedule_and_an_optimizer_of_the_library_are_taken(tmp_path: Path, given: dict[str, Any]) -> None:
    """Reference: the library's own names and options; a package of an optimizer need not be here."""
    before = torch.get_rng_state()
    arguments(tmp_path, warmup_steps=0.1, **given)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [*SchedulerType])
def test_schedules_without_a_warm_up_are_known(kind: SchedulerType) -> None:
    """Reference: the library's schedules, which begin with less than the learning rate or with all of it."""
    needed: dict[str, dict[str, Any]] = {
        "cosine_with_min_lr": {"min_lr": 0.0},
        "warmup_stable_decay": {"num_decay_steps": 5},
    }
    needed["cosine_warmup_with_min_lr"] = needed["cosine_with_min_lr"]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    get_scheduler(kind, optimizer, 10, 100, scheduler_specific_kwargs=needed.get(kind.value))
    assert (optimizer.param_groups[0]["lr"] == 0.5) == (kind.value in WITHOUT_WARMUP)


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub"])
def test_a_run_takes_no_token_and_publishes_nothing_on_its_way(name: str, tmp_path: Path) -> None:
    """Reference: the reason that a recipe gets, from Python too."""
    with pytest.raises(NLTError, match=rf"^{name}: .*leave it out and .* `(hf auth login|nlt push)`$"):
        arguments(tmp_path, **{name: "hf_secret" if name == "hub_token" else True})


def numbers(block: type) -> dict[str, Any]:
    """Options of a dataclass that hold a float, alone, in a list or in a mapping -> a maker of such a value."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(block).items():
        for part in (hint, *get_args(hint)):
            if part is float:
                found[name] = lambda number: number
            elif get_origin(part) is list and float in get_args(part):
                found[name] = lambda number: [0.5, number]
            elif get_origin(part) is dict and float in {*get_args(part), *get_args(get_args(part)[1])}:
                found[name] = lambda number: {"a": 0.5, "b": number}
    return found


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_every_number_of_a_stage_must_be_finite(number: float, tmp_path: Path) -> None:
    """Reference: each option with a float, of this package and of the library, by the types of the dataclasses."""
    needed = {"documents": "a", "output": "b", "encoder": "a", "corpus": "b", "folder": "c", "repo": "a/b"}
    tried = 0
    for block in (*OWN.values(), NLTTrainingArguments):
        given = {f.name: needed[f.name] for f in dataclasses.fields(block) if f.init and f.name in needed}
        if block is NLTTrainingArguments:
            given = {"output_dir": str(tmp_path)}
        for name, make in numbers(block).items():
            with pytest.raises(NLTError, match=rf"^{name} (is|has) .*(nan|inf)"):
                block(**{**given, name: make(number)})
            tried += 1
    assert tried > 20
    for flag, value in (("--max_grad_norm", str(number)), ("--temperatures", f"{{dream: {_yaml(number)}}}")):
        with pytest.raises(NLTError, match=rf"argument {flag}: is .*, expected a finite number"):
            parse_recipe(RECIPE_BLOCKS, [f"{flag}={value}"])


def _yaml(number: float) -> str:
    return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(number)]


BLOCKS = [blocks for name, blocks in vars(stages).items() if name.endswith("_BLOCKS")]
OWN: dict[str, type] = {own.__name__: own for blocks in BLOCKS for own in KnownKeys(blocks).own.values()}
"""Name of every dataclass whose options a stage takes -> the dataclass."""


@pytest.mark.parametrize(
    ("multiplies", "given", "expected"),
    [
        (True, {"encoder_precision": "auto"}, (True, True)),
        (False, {"encoder_precision": "auto"}, (False, False)),
        (True, {}, (False, False)),
        (True, {"encoder_precision": "auto", "bf16_full_eval": True}, (False, True)),
    ],
)
def test_the_encoder_computes_in_bfloat16_where_the_machine_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    multiplies: bool,
    given: dict[str, Any],
    expected: tuple[bool, bool],
) -> None:
    """If it may choose, and the trainer block does not say where it does."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": multiplies})
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: None)
    args = NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=given.get("bf16_full_eval", False), **given)
    assert (args.bf16, args.bf16_full_eval) == expected


@pytest.mark.parametrize("block", OWN.values(), ids=OWN)
def test_every_option_says_what_it_decides(block: type) -> None:
    """Reference: the words of `Decides`; an option that lacks one would be left out of resuming in silence."""
    options = dataclasses.fields(block)
    assert {field.name for field in options if field.metadata.get("decides") not in get_args(Decides)} == set()
    assert all(field.metadata.get("help") for field in options)


def test_the_app_reads_the_llm_as_a_recipe_does() -> None:
    """Reference: the options of a recipe, by their default and their help."""
    app, *recipe = (
        {f.name: f for f in dataclasses.fields(own)} for own in (AppArguments, ModelArguments, DataArguments)
    )
    for name in ("llm", "llm_dtype", "document_prefix", "query_prefix"):
        (declared,) = (block[name] for block in recipe if name in block)
        assert (app[name].default, app[name].metadata["help"]) == (declared.default, declared.metadata["help"])
        assert app[name].metadata["decides"] == "nothing"


def test_every_option_of_the_librarys_trainer_is_known() -> None:
    """Reference: the fields of the installed version; each stands in one of the four lists."""
    installed = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    known = [*DECIDING, *CHOOSING, *OTHER, *REFUSED]
    assert len(known) == len(set(known))
    assert installed - set(known) == set()
    assert set(known) - installed <= {"warmup_ratio"}, "no longer there; remove it"


@pytest.mark.parametrize(
    "name",
    """
    neftune_noise_alpha auto_find_batch_size ignore_data_skip accelerator_config dataloader_in_order
    restore_callback_states_from_checkpoint use_liger_kernel local_rank logging_nan_inf_filter
    per_device_eval_batch_size remove_unused_columns include_num_input_tokens_seen
    """.split(),
)
def test_an_option_that_does_nothing_or_changes_training_unseen_is_refused(name: str) -> None:
    """Reference: the option and its remedy in the message; nothing of it would stand among the settings of a run."""
    with pytest.raises(NLTError, match=rf"argument --{name}: .*; (leave it out|set per_device_train_batch_size)"):
        parse_recipe(RECIPE_BLOCKS, [f"--{name}", "1"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host:port/v1", "is malformed; write it like http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000:8000/v1", "is malformed"),
        ("http://[::1/v1", "is malformed"),
        ("http:///v1", "is malformed"),
        ("http://a b:1/v1", "is malformed"),
        ("http://host:1/v1\x07", "is malformed"),
        ("https://me:secret@host/v1", "with a name, a password, a query"),
        ("https://host/v1?key=secret", "with a name, a password, a query"),
        ("https://secret:word/v1", "is malformed"),
    ],
)
def test_an_address_that_is_none_is_refused_and_not_shown(address: str, message: str) -> None:
    with pytest.raises(NLTError, match=f"^llm is an address .*{message}") as found:
        ModelArguments(llm=address)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000/v1", "https://host/v1", "http://[::1]:8000/v1"])
def test_an_address_is_taken(address: str) -> None:
    assert ModelArguments(llm=address).llm == address


def test_those_that_read_the_llm_are_objectives() -> None:
    """Reference: the names themselves."""
    assert set(OBJECTIVES) > LLM_OBJECTIVES
