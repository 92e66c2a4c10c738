"""Recipe parsing with small dataclasses, one of them on top of Sentence Transformers' training arguments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
from sentence_transformers import SentenceTransformerTrainingArguments

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.recipe.keys import Block, Blocks, KnownKeys
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.recipe.yaml_files import read_mapping


@dataclass
class SmallModelArguments:
    """Parameters that control the model."""

    name: str = field(metadata={"help": "Model folder or Hub id."})
    pooling: Literal["mean", "last"] = field(default="mean", metadata={"help": "Pooling of the states."})
    dimensions: int | None = field(default=None, metadata={"help": "Dimensions to keep."})
    aliases: dict[str, str] = field(default_factory=dict, metadata={"help": "Names by role."})


@dataclass
class SmallDataArguments:
    """Parameters that control the data."""

    num_candidates: int = field(default=8, metadata={"help": "Candidates of a query."})
    collections: list[str] = field(default_factory=lambda: ["a"], metadata={"help": "BEIR folders."})
    cache: Path | None = field(default=None, metadata={"help": "Cache folder."})
    shuffle: bool = field(default=True, metadata={"help": "Shuffle the queries."})
    lengths: list[int] | None = field(default=None, metadata={"help": "Lengths."})

    def __post_init__(self) -> None:
        if self.num_candidates < 0:
            raise ValueError(f"num_candidates is {self.num_candidates}")


@dataclass
class SmallOwnArguments:
    """Parameters that control training."""

    temperature: float = field(default=1.0, metadata={"help": "Temperature of the teacher."})


@dataclass
class SmallTrainingArguments(SmallOwnArguments, SentenceTransformerTrainingArguments):
    """All of them, Sentence Transformers' too."""


INHERITED = frozenset(f.name for f in fields(SentenceTransformerTrainingArguments)) - {"hub_token"}
CLASSES: Blocks = {
    "model": SmallModelArguments,
    "data": SmallDataArguments,
    "trainer": Block(
        own=SmallOwnArguments,
        full=f"{__name__}:SmallTrainingArguments",
        inherited=INHERITED,
        refused={"hub_token": "a token in a recipe would be kept in files; leave it out"},
        documentation="https://sbert.net/docs",
    ),
}
Parsed = tuple[SmallModelArguments, SmallDataArguments, SmallTrainingArguments]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  name: start\ndata:\ntrainer:\n  output_dir: runs/x\n  use_cpu: true\n")
    return path


def parse(path: Path, content: str = "", *flags: str) -> Parsed:
    """Parse a recipe after writing it, if there is content to write."""
    if content:
        path.write_text(content)
    model, data, trainer = parse_recipe(CLASSES, ["--config", str(path), *flags])
    return model, data, trainer


def message(path: Path, content: str = "", *flags: str) -> str:
    """Return the error that a recipe in a file, or flags beside it, gives."""
    with pytest.raises(NLTError) as error:
        parse(path, content, *flags)
    return str(error.value)


def test_yaml_gives_values_and_the_rest_keeps_its_default(recipe: Path) -> None:
    content = "model: {name: start, dimensions: null}\ntrainer: {output_dir: out, learning_rate: 2e-5, temperature: 3}"
    model, data, trainer = parse(recipe, content)
    assert model == SmallModelArguments(name="start")
    assert data == SmallDataArguments()
    assert isinstance(trainer, SmallTrainingArguments)
    assert (trainer.output_dir, trainer.learning_rate, trainer.temperature) == ("out", 2e-5, 3.0)
    assert trainer.num_train_epochs == SentenceTransformerTrainingArguments(output_dir="out").num_train_epochs


@pytest.mark.parametrize(
    "flags",
    [["--learning_rate", "1e-4"], ["--learning_rate=1e-4"], ["--learning-rate", "1e-4"], ["--learning-rate=1e-4"]],
)
def test_the_command_line_overrides_in_every_spelling(recipe: Path, flags: list[str]) -> None:
    content = "model: {name: start}\ntrainer: {output_dir: out, learning_rate: 2e-5}"
    assert parse(recipe, content, *flags)[2].learning_rate == 1e-4


def test_the_command_line_is_enough_and_comes_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--name", "start", "--output_dir", "out"])
    model, _, trainer = parse_recipe(CLASSES)
    assert (model.name, trainer.output_dir) == ("start", "out")


def test_mappings_lists_and_booleans_from_yaml(recipe: Path) -> None:
    model, data, trainer = parse(
        recipe,
        "model:\n  name: start\n  aliases: {query: q, document: d}\n  pooling: last\n  dimensions: 64\n"
        "data:\n  collections: [x, y]\n  shuffle: false\n  lengths: [1, 2]\n"
        'trainer:\n  output_dir: out\n  prompts: {query: "query: "}\n  bf16_full_eval: no\n',
    )
    assert (model.aliases, model.pooling, model.dimensions) == ({"query": "q", "document": "d"}, "last", 64)
    assert (data.collections, data.shuffle, data.lengths) == (["x", "y"], False, [1, 2])
    assert (trainer.prompts, trainer.bf16_full_eval) == ({"query": "query: "}, False)


@pytest.mark.parametrize("aliases", ['{"query": "q", "document": "d"}', "{query: q, document: d}"])
def test_mappings_lists_and_booleans_from_the_command_line(recipe: Path, aliases: str) -> None:
    flags = ["--aliases", aliases, "--collections", "x", "y", "--shuffle", "false", "--lengths", "1", "2"]
    flags += ["--prompts", '{"query": "query: "}', "--skip_memory_metrics", "--pooling=last", "--dimensions=64"]
    model, data, trainer = parse(recipe, "", *flags)
    assert (model.aliases, model.pooling, model.dimensions) == ({"query": "q", "document": "d"}, "last", 64)
    assert (data.collections, data.shuffle, data.lengths) == (["x", "y"], False, [1, 2])
    assert (trainer.prompts, trainer.skip_memory_metrics) == ({"query": "query: "}, True)


def test_a_boolean_can_be_switched_both_ways(recipe: Path) -> None:
    content = "model: {name: start}\ndata: {shuffle: false}\ntrainer: {output_dir: out}"
    assert parse(recipe, content)[1].shuffle is False
    assert parse(recipe, content, "--shuffle")[1].shuffle is True
    assert parse(recipe, "model: {name: start}", "--shuffle", "no")[1].shuffle is False


def test_home_is_expanded_in_paths(recipe: Path) -> None:
    content = "model: {name: ~/start}\ndata: {collections: [~/a, b~], cache: ~/cache}\ntrainer: {output_dir: ~/out}"
    model, data, trainer = parse(recipe, content, "--run_name=~")
    home = Path.home()
    assert (model.name, trainer.output_dir, trainer.run_name) == (f"{home}/start", f"{home}/out", str(home))
    assert (data.collections, data.cache) == ([f"{home}/a", "b~"], home / "cache")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "modle: {name: x}",
            "unknown block `modle`, did you mean `model`?; a recipe has the blocks `model:`, `data:`",
        ),
        ("name: start", "unknown block `name`; `name` is a key of block `model:`"),
        ("model: {nmae: x}", "unknown key `nmae` in block `model:`, did you mean `name`?"),
        ("model: {learning_rate: 1}", "`learning_rate` stands in block `model:` but belongs to block `trainer:`"),
        ("data: {learning_rte: 1}", "unknown key `learning_rte` in block `data:`, did you mean `learning_rate` in"),
        ("data: {xyzzy: 1}", "unknown key `xyzzy` in block `data:`; --help lists the known ones"),
        ("data: {3: 1}", "unknown key `3` in block `data:`"),
        ("data: [num_candidates]", "block `data:` must map keys to values, found list"),
        ("- model", "a recipe maps blocks to keys, found list at the top"),
        ("", "a recipe maps blocks to keys, found NoneType at the top"),
    ],
)
def test_unknown_names_in_a_recipe(recipe: Path, content: str, expected: str) -> None:
    recipe.write_text(content)
    assert message(recipe).startswith(f"{recipe}: {expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("data: {num_candidates: eight}", "`num_candidates` in block `data:` is 'eight', expected int"),
        ("data: {num_candidates: 8.5}", "`num_candidates` in block `data:` is 8.5, expected int"),
        ("data: {num_candidates: true}", "`num_candidates` in block `data:` is True, expected int; put a word"),
        ("data: {num_candidates:}", "`num_candidates` in block `data:` is null, expected int; this key cannot"),
        ("data: {lengths: [1, x]}", "`lengths` in block `data:` is [1, 'x'], expected list[int] or null"),
        ("model: {name: 5}", "`name` in block `model:` is 5, expected str"),
        ("model: {aliases: q}", "`aliases` in block `model:` is 'q', expected dict[str, str]"),
        ("model: {pooling: max}", "`pooling` in block `model:` is 'max', expected one of mean, last"),
        ("trainer: {temperature: hot}", "`temperature` in block `trainer:` is 'hot', expected float"),
        ("model: {name: a}\ntrainer: {eval_strategy: no}", "`eval_strategy` in block `trainer:` is False, expected"),
    ],
)
def test_values_of_a_wrong_type_in_a_recipe(recipe: Path, content: str, expected: str) -> None:
    assert message(recipe, content).startswith(f"{recipe}: {expected}")


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert message(path) == f"{path}: recipe not found; give an existing YAML file with --config"
    assert message(path, "model:\n  name: [x\ndata:\n").startswith(f"{path}:3: not valid YAML (")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: not valid YAML"):
        parse(path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--learning_rat", "1"], "unknown flag --learning_rat, did you mean --learning_rate?"),
        (["--learning-rat=1"], "unknown flag --learning_rat, did you mean --learning_rate?"),
        (["--xyzzy"], "unknown flag --xyzzy; --help lists the known ones"),
        (["value"], "unexpected argument 'value'; give values as --key value"),
        (["--num_candidates", "eight"], "argument --num_candidates: is 'eight', expected int"),
        (
            ["--num_candidates", "1", "2"],
            "unexpected argument '2'; give values as --key value, and put",
        ),
        (["--num_candidates"], "argument --num_candidates: expected one argument"),
        (
            ["--num_candidates", "null"],
            "argument --num_candidates: is null, expected int; this key cannot be unset",
        ),
        (["--temperature", "nan"], "argument --temperature: is 'nan', expected a finite number"),
        (["--aliases", "q"], "argument --aliases: is 'q', expected dict[str, str]"),
        (["--aliases", "{q"], "argument --aliases: '{q' is not a mapping of type dict[str, str]"),
        (["--aliases", "{a: 0x_}"], "argument --aliases: '{a: 0x_}' is not a mapping"),
        (["--aliases", "{[a]: b}"], "argument --aliases: '{[a]: b}' is not a mapping"),
        (["--aliases", "&a [*a]"], "argument --aliases: '&a [*a]' is not a mapping"),
        (["--config", "~nobody/recipe.yaml"], "~nobody/recipe.yaml: recipe not found"),
        (["--pooling", "max"], "argument --pooling: is 'max', expected one of mean, last"),
        (["--hub_token", "x"], "argument --hub_token: a token in a recipe would be kept in files; leave it out"),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_wrong_flags(recipe: Path, flags: list[str], expected: str) -> None:
    assert message(recipe, "", *flags).startswith(expected)


def test_flags_are_not_abbreviated(recipe: Path) -> None:
    assert message(recipe, "", "--num_cand", "3") == "unknown flag --num_cand, did you mean --num_candidates?"


def test_a_required_field_must_come_from_somewhere(recipe: Path) -> None:
    assert message(recipe, "data: {num_candidates: 4}") == (
        f"{recipe}: name is not set and has no default; give --name or set it in the recipe"
    )
    assert parse(recipe, "data: {num_candidates: 4}", "--name", "start")[0].name == "start"


def test_a_value_that_the_dataclass_refuses_names_the_recipe(recipe: Path) -> None:
    content = "model: {name: start}\ntrainer: {save_strategy: sometimes}"
    assert message(recipe, content).startswith(f"{recipe}: sometimes is not a valid SaveStrategy")


def test_a_value_of_the_command_line_that_the_dataclass_refuses_is_not_blamed_on_the_recipe(recipe: Path) -> None:
    """Reference: the place at the start of the message; a fault of both is the recipe's."""
    good, bad = "model: {name: start}", "model: {name: start}\ndata: {num_candidates: -1}"
    assert message(recipe, good, "--num_candidates", "-2") == "command line: num_candidates is -2"
    assert message(recipe, bad, "--num_candidates", "-2") == "command line: num_candidates is -2"
    assert message(recipe, bad, "--shuffle", "false") == f"{recipe}: num_candidates is -1"
    assert message(recipe, "data: {}", "--name=x", "--num_candidates=-2") == "command line: num_candidates is -2"


def test_help_groups_own_fields_before_inherited_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_recipe(CLASSES, ["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    headings = [
        "Parameters that control the model (block `model:`):",
        "Parameters that control the data (block `data:`):",
        "Parameters that control training (block `trainer:`):",
        "--temperature",
        "Inherited parameters (block `trainer:`):",
        "https://sbert.net/docs",
    ]
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "Candidates of a query. (default: 8)" in text
    assert "--learning_rate" not in text
    assert "-" not in "".join(re.findall(r"--(\S+)", text))


def test_help_shows_how_many_values_a_key_takes(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: by hand, from the types of the keys; the defaults read as YAML."""
    with pytest.raises(SystemExit):
        parse(recipe, 'model: {name: ""}\ndata: {shuffle: false}', "--help")
    text = " ".join(capsys.readouterr().out.split())
    for shown in [
        '--name TEXT Model folder or Hub id. (default: "")',
        "--pooling {mean,last} Pooling of the states. (default: mean)",
        "--dimensions INTEGER Dimensions to keep. (default: null)",
        "--aliases MAPPING Names by role. (default: {})",
        '--collections [TEXT ...] BEIR folders. (default: ["a"])',
        "--shuffle [true|false] Shuffle the queries. (default: false)",
        "--lengths [INTEGER ...] Lengths. (default: null)",
        "--temperature NUMBER Temperature of the teacher. (default: 1.0)",
    ]:
        assert shown in text


@dataclass
class SmallDerivedArguments(SmallModelArguments):
    """Parameters that control what is derived."""

    depth: int = field(default=1, metadata={"help": "Depth."})


def test_help_puts_a_key_under_the_dataclass_that_declares_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the order of headings and keys by hand; without inherited keys there is no --help_all to offer."""
    with pytest.raises(SystemExit):
        parse_recipe({"derived": SmallDerivedArguments}, ["--help"])
    text = capsys.readouterr().out
    found = ["that control the model (block `derived:`)", "--name", "--aliases", "that control what is", "--depth"]
    places = [text.index(part) for part in found]
    assert places == sorted(places)
    assert "--help_all" not in text


def test_help_all_lists_inherited_fields_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: a field of transformers, after the heading of what it is inherited from."""
    with pytest.raises(SystemExit) as exit_info:
        parse_recipe(CLASSES, ["--help_all"], description="What it does:\n  a command")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "\nWhat it does:\n  a command\n" in text
    assert 0 < text.index("Inherited parameters") < text.index("--learning_rate NUMBER")
    assert "--help_all" in text


def test_help_shows_the_values_of_the_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(recipe, "data: {num_candidates: 4, shuffle: false}", "--help")
    text = capsys.readouterr().out
    assert "Candidates of a query. (default: 4)" in text


def test_a_failing_dataclass_without_a_recipe_keeps_its_message() -> None:
    with pytest.raises(NLTError, match=r"^--load_best_model_at_end requires"):
        parse_recipe(
            CLASSES, ["--name", "x", "--output_dir", "out", "--load_best_model_at_end", "--eval_strategy=epoch"]
        )


def test_every_flag_knows_its_block() -> None:
    block_of = KnownKeys(CLASSES).block_of
    assert block_of["temperature"] == block_of["learning_rate"] == "trainer"
    assert (block_of["name"], block_of["num_candidates"]) == ("model", "data")


def test_null_unsets_a_key(recipe: Path) -> None:
    """Reference: the recipe's value, and no value; of a library's options too."""
    content = "model: {name: start, dimensions: 64}\ntrainer: {output_dir: out, eval_steps: 10}"
    model, _, trainer = parse(recipe, content)
    assert (model.dimensions, trainer.eval_steps) == (64, 10)
    model, _, trainer = parse(recipe, content, "--dimensions", "null", "--eval_steps", "null")
    assert (model.dimensions, trainer.eval_steps) == (None, None)


@pytest.mark.parametrize(
    ("content", "line", "key"),
    [
        ("model: {name: a}\ndata: {}\nmodel: {name: b}", 3, "model"),
        ("data:\n  shuffle: true\n  shuffle: false", 3, "shuffle"),
    ],
)
def test_a_key_that_stands_twice_is_refused(recipe: Path, content: str, line: int, key: str) -> None:
    """Reference: the line of the second; YAML alone would drop the first in silence."""
    assert message(recipe, content) == f"{recipe}:{line}: not valid YAML ({key!r} stands twice; keep one)"


@pytest.mark.parametrize("number", ["010", "1:30", "1:30.5", "0x10", "0b1", "-07"])
def test_a_number_that_is_not_decimal_is_refused(recipe: Path, number: str) -> None:
    """Reference: the line and the text; YAML alone would read 010 as 8 and 1:30 as 90."""
    found = message(recipe, f"trainer:\n  seed: {number}\n")
    assert found == f"{recipe}:2: not valid YAML ({number!r} is no decimal number; write it in decimal, or in quotes)"


def test_a_list_whose_flag_stands_twice_has_all_values(tmp_path: Path) -> None:
    given = ["--output_dir", str(tmp_path), "--eval_collections", "a:test", "--eval_collections", "b:test", "c:dev"]
    _, data, _ = parse_recipe(RECIPE_BLOCKS, given)
    assert data.eval_collections == ["a:test", "b:test", "c:dev"]


def test_a_refused_option_says_what_to_do(recipe: Path) -> None:
    """Reference: the reason that the block gives."""
    found = message(recipe, "model: {name: a}\ntrainer: {hub_token: x}")
    assert found.endswith("`hub_token` in block `trainer:`: a token in a recipe would be kept in files; leave it out")


NESTED = "\n".join(
    [f"model: {{k0: &k0 {['x'] * 9}", *(f", k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 12))]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"model: {'[' * 5000}{']' * 5000}", r":1: not valid YAML \(more than 32 levels"),
        ("\n".join(" " * i + "a:" for i in range(300)), r":33: not valid YAML \(more than 32 levels"),
        (f"{NESTED}}}", r"its anchors make more than 10,000 values"),
        ("model: &all {encoder: *all}", r"a value contains itself"),
        (f"model: {{encoder: {'x' * 2**20}}}", r"it has 1,048,594 bytes, and a recipe at most 65,536"),
        ("model: {encoder: a\0b}", r"not valid YAML \(unacceptable character #x0000.* position 18\)$"),
        ("trainer: {seed: 0x_}", r":1: not valid YAML \('0x_' is no decimal number; write it in decimal"),
        ("model: {encoder: 2001-99-99}", r":1: not valid YAML \('2001-99-99' has no value of its kind, .*timestamp"),
        (f"trainer: {{seed: {'9' * 5000}}}", r":1: not valid YAML \('9{40}' has no value of its kind, .*int"),
        ("model: !!bool maybe", r":1: not valid YAML \('maybe' has no value of its kind, .*bool"),
        ("? [a]\n: b", r":1: not valid YAML \(a list or a mapping stands where a key belongs; write a word\)"),
        ("model: !!python/object/apply:os.system ['true']", r":1: not valid YAML \(could not determine a constructor"),
    ],
    ids=[
        "brackets",
        "indentation",
        "anchors",
        "itself",
        "size",
        "zero",
        "number",
        "date",
        "digits",
        "bool",
        "key",
        "object",
    ],
)
def test_yaml_that_is_no_recipe_is_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    """Reference: the message, in one line; each of these once took seconds, or ended in a traceback."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_mapping(path)
    assert "\n" not in str(raised.value)
