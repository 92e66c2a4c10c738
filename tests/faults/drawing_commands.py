"""What the program inputs.py draws besides files of data: recipes, and command lines of every stage."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

import yaml
from drawing import DOCUMENT_IDS, ODD_TEXTS, QUERY_IDS, SEEDS, VALUES, Draw, Input, encoded
from hypothesis import strategies as st

from nlt_trainer.arguments import stages as blocks_of
from nlt_trainer.recipe.keys import Blocks, KnownKeys
from nlt_trainer.scripts import cli

PATHS = [
    "collection", "collection/corpus.jsonl", "candidates.jsonl", "gains.jsonl", "heads.json", "run", "documents",
    "model", "recipe.yaml", "new", "new/deep", "missing", "", ".", "..", "../new", "/", "~", "~/new", "~nobody/x",
    "a\0b", "\udcff", "x" * 300, "x/" * 3000, "-", "collection:test", "collection:a\0b", "collection:../x", "x.gguf",
    "package:", "package:os/x", "package:tests/../..", "org/name", "org/name/x", "a b", "loop", "loop/x", "\x1b[2J",
]  # fmt: skip
WORDS = [
    "null", "true", "false", "0", "-1", "1", "3", "1e-4", "1e400", "nan", "-inf", "9" * 400, "9" * 5000, "[]", "{}",
    "{a: 1}", "{a: {b: [c]}}", "[" * 400, "{[a]: b}", "&a [*a]", "0x_", "2001-99-99", "!!python/name:os.system x",
    "!!int x", "bm25",
]  # fmt: skip
ANY = st.one_of(st.sampled_from(WORDS), st.sampled_from(PATHS), st.sampled_from(ODD_TEXTS))

STAGE_BLOCKS: dict[str, Blocks] = {
    "adapt": blocks_of.ADAPT_BLOCKS,
    "plan": blocks_of.PLAN_BLOCKS,
    "build_corpus": blocks_of.CORPUS_BLOCKS,
    "build_collection": blocks_of.COLLECTION_BLOCKS,
    "make_queries": blocks_of.QUERIES_BLOCKS,
    "evaluate": blocks_of.EVALUATION_BLOCKS,
    "export": blocks_of.EXPORT_BLOCKS,
    "push": blocks_of.PUSH_BLOCKS,
    "pull": blocks_of.PULL_BLOCKS,
    "search": blocks_of.SEARCH_BLOCKS,
    "app": blocks_of.APP_BLOCKS,
}
"""Stage -> its blocks; the stages that are left out take those of a recipe alone, or none."""
GOOD = {
    "adapt": ["documents", "--encoder", "model", "--llm", "model", "--output", "new"],
    "build_corpus": ["--documents", "documents", "--corpus", "new"],
    "build_collection": ["--folder", "new", "--beir", "collection"],
    "make_queries": ["--config", "recipe.yaml", "--corpus", "collection", "--collection", "new"],
    "compare_heads": ["heads.json", "heads.json"],
    "pull": ["--repo", "org/name", "--folder", "new"],
    "report": ["run"],
    "search": ["--encoder", "model", "--corpus", "collection", "--query", "tea"],
    "app": ["--encoder", "model", "--corpus", "collection", "--llm", "model"],
}
"""Stage -> a command line that gets far; the others take the recipe."""
KNOWN = {stage: KnownKeys(STAGE_BLOCKS.get(stage, blocks_of.RECIPE_BLOCKS)) for stage in cli.STAGES}
LONG = {"build_stdlib"}
"""What takes seconds where all is well, so that it is only called with a wrong word at the end."""


def fitting(hint: Any) -> list[str]:
    """Values of the type of an option."""
    kinds = {
        str: ["new", "model", "collection"],
        int: ["1", "2", "7"],
        float: ["0.5", "1e-3"],
        bool: ["true", "false"],
    }
    return next((values for kind, values in kinds.items() if kind in (hint, *get_args(hint))), ["1", "true", "no"])


@st.composite
def flags(draw: Draw, known: KnownKeys) -> list[str]:
    """A flag of a stage with a value that fits, more or less."""
    key = draw(st.sampled_from([*known.block_of]))
    hint = known.own_hint(key)
    choices = [str(word) for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]
    value = draw(st.sampled_from(choices) if choices and draw(st.booleans()) else ANY)
    form = draw(st.sampled_from(("two words", "two words", "one word", "no value", "dashes", "misspelt")))
    if form == "one word":
        return [f"--{key}={value}"]
    if form == "no value":
        return [f"--{key}"]
    if form == "misspelt":
        return [f"--{key}s", value]
    if draw(st.booleans()):
        value = draw(st.sampled_from(fitting(hint)))
    return [f"--{key.replace('_', '-')}" if form == "dashes" else f"--{key}", value]


@st.composite
def command_lines(draw: Draw) -> Input:
    """A command line of any stage."""
    stage = draw(st.sampled_from([*cli.STAGES]))
    words = list(GOOD.get(stage, ["--config", "recipe.yaml"])) if draw(st.integers(0, 9)) < 9 else []
    for _ in range(draw(st.integers(0, 2))):
        words += draw(flags(KNOWN[stage]))
    if words and draw(st.integers(0, 5)) == 5:
        words[draw(st.integers(0, len(words) - 1))] = draw(ANY)
    if draw(st.integers(0, 9)) == 9:
        words.append(draw(st.one_of(ANY, st.sampled_from(("--help", "--help_all", "--", "-x", "@x")))))
    if stage in LONG:
        words += ["--seed", "none"]
    return Input(
        {}, [draw(st.sampled_from((stage, stage.replace("_", "-"), f"{stage}x"))) if words else stage, *words]
    )


@st.composite
def recipes(draw: Draw) -> Input:
    """A recipe whose values fit, more or less, with something wrong in the text."""
    known = KNOWN["train"]
    content: dict[str, dict[str, Any]] = {}
    for _ in range(draw(st.integers(0, 6))):
        key = draw(st.sampled_from([*known.block_of]))
        value = draw(st.one_of(VALUES, st.sampled_from(WORDS), st.integers(0, 9), st.sampled_from(PATHS)))
        content.setdefault(known.block_of[key], {})[key] = value
    try:
        text = yaml.safe_dump(content, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans()))
    except (yaml.YAMLError, ValueError):
        text = json.dumps(content, default=str)
    text += draw(
        st.sampled_from(("", "", "trainer:\n  seed: 0x_\n", "? [a]\n: b\n", "model: &a {llm: *a}\n", "<<: 3\n"))
    )
    return Input({"recipe.yaml": encoded(text)}, ["--config", "recipe.yaml"], draw(SEEDS))


RECIPE = b"""
model: {encoder: model, llm: model, heads: heads.json}
data: {collection: collection, train_split: test, eval_split: test, num_candidates: 2}
trainer: {output_dir: new, max_steps: 2, use_cpu: true, report_to: none, disable_tqdm: true}
"""


def world() -> dict[str, bytes]:
    """The files that a command line finds. The model has no weights, so that no stage runs long."""
    corpus = [{"_id": one, "title": "", "text": f"{one} the moon pulls the water of the sea"} for one in DOCUMENT_IDS]
    queries = [{"_id": one, "text": f"what does {one} pull"} for one in QUERY_IDS]
    mined = {"answer": None, "document_ids": DOCUMENT_IDS[:2], "bm25": [1.0, 0.5]}
    heads = {
        "heads": [[0, 1]],
        "scores": [[0.5, 1.0]],
        "llm": "model",
        "llm_fingerprint": {"weights": "x"},
        "settings": {},
    }
    lines: dict[str, list[Any]] = {
        "collection/corpus.jsonl": corpus,
        "collection/queries.jsonl": queries,
        "candidates.jsonl": [{"query_id": q["_id"], "query": q["text"], **mined} for q in queries],
        "gains.jsonl": [{"query_id": q, "document_ids": DOCUMENT_IDS[:2], "gain": [0.5, 0.1]} for q in QUERY_IDS],
        "heads.json": [heads],
        "model/config.json": [{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}],
        "run/settings.json": [{"model": {}, "data": {}, "trainer": {}}],
    }
    files = {name: "".join(json.dumps(row) + "\n" for row in rows).encode() for name, rows in lines.items()}
    files["collection/qrels/test.tsv"] = b"query-id\tcorpus-id\tscore\nq0\td1\t1\nq1\td2\t1\n"
    files["documents/a.md"] = "\n\n".join(f"# {n}\n\nText {n} of a person who swims." for n in "abc").encode()
    files["recipe.yaml"] = RECIPE
    return files
