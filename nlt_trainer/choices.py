"""The words that options choose from. Recipes, functions and error messages all take them from this file.

Nothing heavy is imported here, so that a recipe with a wrong word is refused before torch is imported.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from nlt_trainer.errors import NLTError

TargetKind = Literal["answer", "query", "joint"]
"""The text whose likelihood counts: the answer, the query, or the query followed by the answer."""

DocumentLayout = Literal["sequential", "independent"]
"""`sequential`: a document sees those before it. `independent`: it sees only itself and the start of the prompt. Its
positions begin behind that start, so that its keys and values are the same in every prompt."""

EncoderDtype = Literal["float32", "bfloat16"]
LLMDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""The dtype of an LLM. `auto` is bfloat16 on a machine that multiplies in bfloat16, and float32 on any other."""
EncoderPrecision = Literal["auto", "float32"]
"""What an encoder multiplies in; `auto` as for an LLM."""
PoolingMode = Literal["mean", "cls", "lasttoken"]

Miner = Literal["bm25", "encoder", "fused"]
"""What chooses a query's candidates: BM25, the encoder, or both by reciprocal rank fusion."""

DenseIndex = Literal["exact", "ivf_pq"]
"""How an encoder's nearest documents are found: by comparing all, or those that an index of FAISS proposes."""

QueryOrigin = Literal["crop", "llm", "both"]
"""What makes queries of passages: cutting sentences out, the LLM, or both."""

HeadMethod = Literal["gain", "gradient", "needle", "qrels"]
"""What heads are scored by, and how it is known which document is the right one."""
HeadSelection = Literal["best", "random", "worst"]
"""Which heads of a score table are kept; the last two are controls."""

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon", "margin_mse", "listwise"]
Prior = Literal["bm25", "order"]
"""What is mixed into gains: BM25's scores of the candidates, or the places that the miner gave them."""
MarginalLevel = Literal["sequence", "token"]
"""What EMDR2 marginalises over the candidates: the whole target's likelihood, or each token's."""

DocumentMass = Literal["kept", "one"]
"""The attention that an injected head divides among documents: what it gives them by itself, or all of it."""

Engine = Literal["local", "ray"]
"""What embeds and scores: the processes that were started, or workers of Ray."""

Precision = Literal["int8", "binary"]
"""Format of the numbers of a document's embedding in a compressed index."""
ExportForm = Literal["merged", "adapter", "onnx", "openvino"]
RepoType = Literal["model", "dataset"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a word that an option does not have.

    Args:
        name: of the option.
        value: what was given.
        choices: a `Literal` of this module.

    Raises:
        NLTError: names the value and the choices.
    """
    if value not in get_args(choices):
        raise NLTError(f"{name} {value!r} is unknown; choose one of {', '.join(get_args(choices))}")
