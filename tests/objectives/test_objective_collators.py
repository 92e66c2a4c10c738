"""The collator that an objective makes, against one that is put together by hand from the same settings."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.choices import DocumentLayout
from nlt_trainer.data.collator import ChunkBuilder, NLTCollator, PromptBuilder
from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.training_arguments import NLTTrainingArguments

TEXTS = ["green tea of the harvest", "an owl hunts at night", "the moon", "bread rises", "silk of a moth", "honey"]
ROWS: list[dict[str, Any]] = [
    {
        "query": f"query number {b}",
        "answer": f"answer {b}",
        "documents": [TEXTS[(b + k) % 6] for k in range(3)],
        "gain": [0.5, 0.1 * b, -0.2],
    }
    for b in range(5)
]
TEMPLATE = PromptTemplate(document_prefix="Text: ", query_prefix="Ask:")
SETTINGS: dict[str, Any] = {"template": TEMPLATE, "target": "joint", "max_document_tokens": 6}


def dream(encoder: SentenceTransformer, lm: FrozenLM) -> DREAMLoss:
    heads = HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, lm.name, lm.fingerprint, {})
    return DREAMLoss(encoder, lm, heads=heads)


def tokens_of(lm: FrozenLM) -> PromptTokens:
    return PromptTokens(lm.tokenizer, TEMPLATE, max_document_tokens=6)


def prompts_of(lm: FrozenLM, *, layout: DocumentLayout = "sequential") -> PromptBuilder:
    """The reference, built from its parts."""
    return PromptBuilder(tokens_of(lm), "joint", lm.context_length, layout=layout)


def chunks_of(lm: FrozenLM) -> ChunkBuilder:
    return ChunkBuilder(tokens_of(lm), "joint", lm.context_length)


def assert_equal_batches(found: NLTCollator, expected: NLTCollator) -> None:
    ours, theirs = found(ROWS), expected(ROWS)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
        else:
            assert ours[name] == value


@pytest.mark.parametrize("kind", [LikelihoodGainLoss, EMDR2Loss, InfoNCELoss])
def test_without_an_llm_a_batch_is_the_encoders(tiny_encoder: SentenceTransformer, kind: type[Any]) -> None:
    """Reference: `NLTCollator` of the encoder with the same two settings, and with none."""
    loss: Objective = kind(tiny_encoder)
    assert_equal_batches(loss.collator(), NLTCollator(tiny_encoder, seed=42))
    assert_equal_batches(loss.collator(ROWS, max_length=4, seed=3), NLTCollator(tiny_encoder, max_length=4, seed=3))


@pytest.mark.parametrize("kind", [LOOPLoss, ADistLoss, DREAMLoss])
@pytest.mark.parametrize("layout", ["sequential", "independent"])
def test_prompts_of_documents(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, kind: type[Any], layout: DocumentLayout
) -> None:
    """Reference: a prompt builder by hand, in both layouts; the seed orders the candidates."""
    loss: Objective = dream(tiny_encoder, tiny_lm) if kind is DREAMLoss else kind(tiny_encoder, tiny_lm)
    expected = NLTCollator(tiny_encoder, prompts=prompts_of(tiny_lm, layout=layout), max_length=4, seed=3)
    assert_equal_batches(loss.collator(layout=layout, max_length=4, seed=3, **SETTINGS), expected)


def test_revela_has_chunks(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: a chunk builder by hand."""
    found = RevelaLoss(tiny_encoder, tiny_lm).collator(**SETTINGS)
    assert_equal_batches(found, NLTCollator(tiny_encoder, chunks=chunks_of(tiny_lm), seed=42))


def test_a_mixture_has_what_its_terms_have(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: both builders by hand; gradient caching adds nothing; each document is tokenised once for both."""
    terms = [LikelihoodGainLoss(tiny_encoder), dream(tiny_encoder, tiny_lm), RevelaLoss(tiny_encoder, tiny_lm)]
    mixture = MixtureLoss(terms, weights=[1.0, 0.5, 2.0])
    prompts = prompts_of(tiny_lm, layout="independent")
    expected = NLTCollator(tiny_encoder, prompts=prompts, chunks=chunks_of(tiny_lm), seed=42)
    settings = {"layout": "independent", **SETTINGS}
    for loss in (mixture, GradCacheLoss(mixture, micro_batch_size=2)):
        found = loss.collator(ROWS, **settings)
        assert_equal_batches(found, expected)
        assert found.prompts is not None
        assert found.chunks is not None
        assert found.prompts.tokens is found.chunks.tokens
    plain = MixtureLoss([LikelihoodGainLoss(tiny_encoder), EMDR2Loss(tiny_encoder)], weights=[1.0, 1.0])
    assert_equal_batches(plain.collator(), NLTCollator(tiny_encoder, seed=42))


def test_chunks_and_prompts_may_be_those_of_two_llms(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tiny_bos_lm: FrozenLM
) -> None:
    """Reference: a builder by hand for each LLM; two LLMs that read the same texts must have one tokenizer."""
    terms: list[Objective] = [LOOPLoss(tiny_encoder, tiny_lm), RevelaLoss(tiny_encoder, tiny_bos_lm)]
    expected = NLTCollator(tiny_encoder, prompts=prompts_of(tiny_lm), chunks=chunks_of(tiny_bos_lm), seed=42)
    assert_equal_batches(MixtureLoss(terms, weights=[1.0, 1.0]).collator(**SETTINGS), expected)
    mixture = MixtureLoss([terms[0], ADistLoss(tiny_encoder, tiny_bos_lm)], weights=[1.0, 1.0])
    with pytest.raises(NLTError, match=r"LLMs of different tokenizers, .*tiny_llm.*; give both the same LLM"):
        mixture.collator(**SETTINGS)


def test_of_two_llms_the_shorter_context_counts(tiny_lm: FrozenLM) -> None:
    """Reference: two frames by hand that differ in it alone."""
    frame = tiny_lm.prompt_frame
    short = type(frame)("short", frame.tokenizer, frame.tokenizer_id, 64)
    assert (LLMTexts(prompts=frame) | LLMTexts(prompts=short)).prompts is short
    assert (LLMTexts(chunks=short) | LLMTexts(prompts=frame)) == LLMTexts(prompts=frame, chunks=short)


def test_the_defaults_are_the_recipes(tiny_lm: FrozenLM) -> None:
    """Reference: a recipe that leaves everything out."""
    data, args = DataArguments(), NLTTrainingArguments(output_dir="", use_cpu=True)
    found = {name: p.default for name, p in inspect.signature(LLMTexts.builders).parameters.items()}
    expected = {
        "template": data.template,
        "target": data.target,
        "max_document_tokens": data.max_document_tokens,
        "layout": data.document_layout,
    }
    assert {name: found[name] for name in expected} == expected
    parameters = inspect.signature(Objective.collator).parameters
    assert parameters["seed"].default == args.seed
    assert set(parameters) - {"self", "rows", "max_length", "seed"} == set(expected)
    assert {*LLMTexts(prompts=tiny_lm.prompt_frame).settings} == set(expected)


def test_the_rows_decide_about_a_target_that_is_not_chosen(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM
) -> None:
    """Reference: joint where every row has an answer, else query, as in a recipe."""
    loss = LOOPLoss(tiny_encoder, tiny_lm)
    without = [{**row, "answer": None} if b == 3 else row for b, row in enumerate(ROWS)]
    for rows, target in ((ROWS, "joint"), (without, "query"), (Dataset.from_list(without), "query")):
        prompts = loss.collator(rows).prompts
        assert prompts is not None
        assert prompts.target == target
    with pytest.raises(NLTError, match=r"give the training rows, loss.collator\(rows\), or target"):
        loss.collator()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("likelihood_gain", {"layout": "independent"}, r"^LikelihoodGainLoss has no use for layout in its collator; "
         r"leave it out \(it takes max_length, seed\)$"),
        ("revela", {"layout": "sequential"}, "^RevelaLoss has no use for layout"),
        ("grad_cache", {"target": "query"}, "^GradCacheLoss has no use for target"),
        ("loop", {"target": "quary"}, "target 'quary' is unknown; choose one of answer, query, joint"),
        ("loop", {"layout": "apart"}, "layout 'apart' is unknown; choose one of sequential, independent"),
        ("loop", {"max_document_tokens": 0}, "max_document_tokens is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, name: str, settings: dict[str, Any], message: str
) -> None:
    """Reference: the value and the remedy in each message."""
    losses: dict[str, Objective] = {
        "likelihood_gain": LikelihoodGainLoss(tiny_encoder),
        "grad_cache": GradCacheLoss(InfoNCELoss(tiny_encoder), micro_batch_size=2),
        "loop": LOOPLoss(tiny_encoder, tiny_lm),
        "dream": dream(tiny_encoder, tiny_lm),
        "revela": RevelaLoss(tiny_encoder, tiny_lm),
    }
    with pytest.raises(NLTError, match=message):
        losses[name].collator(ROWS, **settings)


def test_a_name_that_no_collator_has_is_an_error(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: Python's own error."""
    with pytest.raises(TypeError, match="max_documents"):
        dream(tiny_encoder, tiny_lm).collator(ROWS, max_documents=2)  # type: ignore[call-arg]


def test_a_batch_without_the_llms_texts_is_refused(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the remedy in the message, for a collator that was made by hand without them."""
    labels = NLTCollator(tiny_encoder)(ROWS)
    queries, documents = torch.eye(5), torch.ones(5, 3, 5)
    for loss in (dream(tiny_encoder, tiny_lm), RevelaLoss(tiny_encoder, tiny_lm)):
        with pytest.raises(NLTError, match=r"the batch has no \w+_ids; pass data_collator=loss.collator\(...\)"):
            loss.compute_loss_from_embeddings(queries, documents, labels)
