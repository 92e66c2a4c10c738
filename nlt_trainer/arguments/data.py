"""The recipe's block `data:`: collection, candidates, gains, and the prompt that the LLM reads."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.beside import audit_file, embeddings_folder, written_file
from nlt_trainer.arguments.option import check_values, option
from nlt_trainer.choices import DenseIndex, DocumentLayout, HeadMethod, Miner, TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.prompts import PromptTemplate


@dataclass
class DataArguments:
    """Parameters that control the data."""

    collection: str = option(
        default="collection",
        decides="nothing",
        path="collection",
        beside={written_file: "file", embeddings_folder: "folder"},
        help="BEIR folder with corpus.jsonl and queries.jsonl.",
    )
    train_split: str | None = option(
        default=None,
        decides="nothing",
        help=(
            "Train on the queries that qrels/<split>.tsv names; only score's audit and the option labels read its "
            "judgements. Unset: train on all queries."
        ),
    )
    max_queries: int | None = option(
        default=None,
        decides="nothing",
        help="Number of these queries to train on, drawn by seed; unset: all.",
    )
    candidates: str = option(
        default="candidates.jsonl",
        decides="nothing",
        path="file",
        beside={embeddings_folder: "folder"},
        help="File of candidates: mine writes it, later stages read it.",
    )
    num_candidates: int = option(
        default=8,
        decides="nothing",
        help="K, the number of candidates of each query.",
    )
    miner: Miner = option(
        default="bm25",
        decides="nothing",
        help=(
            "What chooses candidates: bm25, encoder (the recipe's encoder, by its own similarity) or fused (both, by "
            "reciprocal rank fusion)."
        ),
    )
    index: DenseIndex = option(
        default="exact",
        decides="nothing",
        help=(
            "How miner: encoder and fused find the encoder's nearest documents: exact compares all; ivf_pq those "
            "that an index of FAISS proposes, where there are 10,000 documents or more."
        ),
    )
    gains: str = option(
        default="gains.jsonl",
        decides="nothing",
        path="file",
        beside={audit_file: "file"},
        help="File of likelihood gains: score writes it, later stages read it.",
    )
    token_likelihoods: bool = option(
        default=False,
        decides="nothing",
        help="Let score also write the log-likelihood of each target token, which emdr2_level: token reads.",
    )
    score_cache: str = option(
        default="scores",
        decides="nothing",
        path="cache",
        help="Folder of the score cache.",
    )
    target: TargetKind | None = option(
        default=None,
        decides="llm",
        help="Text whose likelihood counts: answer, query or joint (both); unset: joint with answers, else query.",
    )
    document_prefix: str = option(
        default=PromptTemplate.document_prefix,
        decides="llm",
        help="Text before each document in the LLM's prompt.",
    )
    document_suffix: str = option(
        default=PromptTemplate.document_suffix,
        decides="llm",
        help="Text after each document in the LLM's prompt.",
    )
    query_prefix: str = option(
        default=PromptTemplate.query_prefix,
        decides="llm",
        help="Text before the query in the LLM's prompt.",
    )
    answer_prefix: str = option(
        default=PromptTemplate.answer_prefix,
        decides="llm",
        help="Text before the answer in the LLM's prompt.",
    )
    max_document_tokens: int = option(
        default=192,
        decides="llm",
        help="The most tokens of a document that the LLM reads; longer documents are cut, and score counts them.",
    )
    document_layout: DocumentLayout = option(
        default="sequential",
        decides="llm",
        help=(
            "How documents stand in the LLM's prompt (dream, loop, adist, detect_heads): sequential (each sees those "
            "before it) or independent (none sees another, so that each is read once)."
        ),
    )
    head_layout: DocumentLayout | None = option(
        default=None,
        decides="nothing",
        help="Layout in which detect_heads observes the heads; unset: document_layout.",
    )
    batch_tokens: int = option(
        default=2048,
        decides="nothing",
        help="Tokens, with padding, in one forward pass of scoring; 2048 suits a CPU, and a GPU takes more.",
    )
    adapt_documents: int | None = option(
        default=None,
        decides="adaptation",
        help="Number of documents, drawn by seed, that adapt_scorer reads without a query; unset: all.",
    )
    adapt_pairs: bool = option(
        default=False,
        decides="adaptation",
        help="Let adapt_scorer also read each query after the candidate with its highest gain.",
    )
    head_queries: int = option(
        default=64,
        decides="nothing",
        help="Number of queries with which detect_heads scores heads.",
    )
    head_method: HeadMethod = option(
        default="gradient",
        decides="nothing",
        help=(
            "How detect_heads scores heads: by the rank of the candidate with the highest gain (gain), how surely the "
            "LLM's loss asks a head for that candidate (gradient), the rank of the document that a sentence was cut "
            "out of (needle, which needs only a corpus) or the rank of what head_qrels judges relevant (qrels)."
        ),
    )
    head_qrels: str | None = option(
        default=None,
        decides="nothing",
        help="Split whose judgements say what is relevant for head_method: qrels.",
    )
    labels: bool = option(
        default=False,
        decides="training",
        help="Take info_nce's positives from qrels/<train_split>.tsv and not from the gain.",
    )
    dev_split: str | None = option(
        default=None,
        decides="result",
        help="Split to evaluate on during training, as often as eval_strategy says.",
    )
    dev_documents: int | None = option(
        default=None,
        decides="result",
        help=(
            "Number of documents that are searched for the queries of dev_split during training: the judged ones, "
            "then BM25's best ten of each query, then documents drawn by seed. Figures are higher than with all "
            "documents. Unset: all."
        ),
    )
    eval_split: str | None = option(
        default="test",
        decides="nothing",
        help="Split that evaluate reports on; null: it reports only on eval_collections.",
    )
    eval_collections: list[str] = option(
        default_factory=list,
        decides="nothing",
        path="collection",
        help="Further collections to report on, each as FOLDER:SPLIT.",
    )

    def __post_init__(self) -> None:
        check_values(self)
        if (self.head_method == "qrels") != (self.head_qrels is not None):
            raise NLTError(
                f"head_method is {self.head_method!r} and head_qrels {self.head_qrels!r}; judgements are read where "
                "head_method is qrels and head_qrels names their split"
            )
        limits = ("max_queries", "max_document_tokens", "batch_tokens", "adapt_documents", "dev_documents")
        for name in (*limits, "head_queries"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise NLTError(f"{name} is {number}; it must be at least 1")
        if self.num_candidates < 2:
            raise NLTError(f"num_candidates is {self.num_candidates}; a distribution needs at least 2 candidates")

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate(self.document_prefix, self.document_suffix, self.query_prefix, self.answer_prefix)
