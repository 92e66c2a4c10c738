"""The options that `nlt evaluate` takes besides a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nlt_trainer.arguments.option import check_values, option
from nlt_trainer.choices import Precision
from nlt_trainer.errors import NLTError
from nlt_trainer.files import cache_folder


@dataclass
class EvaluationArguments:
    """Parameters that control the evaluation."""

    tasks: list[str] = option(
        default_factory=list,
        decides="nothing",
        path="collection",
        help=(
            "What to evaluate on in place of the recipe's collections: tasks and benchmarks of mteb by name "
            "(SciFact, NanoBEIR, BEIR, CoIR, 'MTEB(eng, v2)', 'RTEB(beta)'), or BEIR and TREC folders as FOLDER:SPLIT."
        ),
    )
    checkpoints: list[str] = option(
        default_factory=list,
        decides="nothing",
        path="model",
        help="Encoders to evaluate beside that of the recipe: Hub ids, folders, or output folders of other runs.",
    )
    run_files: list[str] = option(
        default_factory=list,
        decides="nothing",
        path="file",
        help="Rankings in trec_eval's run format to add as rows; possible with a single task.",
    )
    fused: bool = option(
        default=False,
        decides="nothing",
        help="Add a row for each encoder fused with BM25 by reciprocal ranks (k = 60, the best 100 of each).",
    )
    bm25_weights: list[float] = option(
        default_factory=list,
        decides="nothing",
        help="Add a row for each encoder with so much of BM25's score mixed in, as nlt search does, e.g. 0.3 0.6.",
    )
    truncate_dims: list[int] = option(
        default_factory=list,
        decides="nothing",
        help="Add a row for each encoder with only so many first dimensions, e.g. 256 128.",
    )
    quantisations: list[Precision] = option(
        default_factory=list,
        decides="nothing",
        help=f"Add a row for each encoder, in every size, with documents in {' or '.join(get_args(Precision))}.",
    )
    against: str | None = option(
        default=None,
        decides="nothing",
        help=(
            "Row that the others are compared with, one by one; p is not corrected for the number of comparisons. "
            "Unset: the row of the first encoder."
        ),
    )
    encode_batch_size: int = option(
        default=32,
        decides="nothing",
        help="Texts that an encoder embeds at once.",
    )
    evaluation_cache: str | None = option(
        default=None,
        decides="nothing",
        path="cache",
        help="Folder in which results and embeddings are kept; unset: the user's cache (NLT_CACHE).",
    )
    embedding_cache_gib: float = option(
        default=20.0,
        decides="nothing",
        help="GiB of embeddings that stay in that folder afterwards, the last used ones; 0: none.",
    )

    def __post_init__(self) -> None:
        check_values(self)
        if wrong := [dim for dim in self.truncate_dims if dim < 1]:
            raise NLTError(f"truncate_dims has {wrong[0]}; it must be at least 1")
        if strange := [weight for weight in self.bm25_weights if not 0 <= weight <= 1]:
            raise NLTError(
                f"bm25_weights has {strange[0]}; it must be between 0 (the encoder alone) and 1 (BM25 alone)"
            )
        if self.encode_batch_size < 1:
            raise NLTError(f"encode_batch_size is {self.encode_batch_size}; it must be at least 1")

    @property
    def cache(self) -> Path:
        return cache_folder() if self.evaluation_cache is None else Path(self.evaluation_cache).expanduser()
