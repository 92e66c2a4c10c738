"""Scoring, injection and training on a GPU in half precision against the CPU in float32. Skipped without CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny import DOCUMENTS, QUERIES
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nlt_trainer.choices import DocumentLayout, LLMDtype
from nlt_trainer.data.beir import load_collection
from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.data.training import training_dataset
from nlt_trainer.injection.detection import detect_query_focused_heads
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

GPU = "cuda"
TOLERANCE: dict[LLMDtype, float] = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""The largest error of a gain, nats per token, in each dtype; the gains of the tiny LLM are about 0.3."""

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

TEXTS = [" ".join(document) for document in DOCUMENTS.values()]
ASKED = [query[0] for query in QUERIES.values()]
CANDIDATES = [[TEXTS[(b + 3 * k) % len(TEXTS)] for k in range(4)] for b in range(len(ASKED))]


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> LLMDtype:
    chosen: LLMDtype = request.param
    return chosen


def loaded(folder: Path, *, dtype: LLMDtype = "float32", device: str = "cpu") -> FrozenLM:
    return FrozenLM.from_pretrained(str(folder), dtype=dtype, device=device)


def cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double().cpu().flatten(), other.detach().double().cpu().flatten()
    return float(torch.cosine_similarity(one, other, dim=0))


def test_gains_are_those_of_the_cpu(tiny_llm_folder: Path, dtype: LLMDtype) -> None:
    """Reference: the same gains on the CPU in float32, within the rounding of the dtype."""
    expected = LikelihoodScorer(loaded(tiny_llm_folder), target="query").gain(ASKED, CANDIDATES)
    lm = loaded(tiny_llm_folder, dtype=dtype, device=GPU)
    found = LikelihoodScorer(lm, target="query").gain(ASKED, CANDIDATES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert np.abs(expected).max() > 2 * TOLERANCE[dtype]


def heads_of(lm: FrozenLM) -> HeadSet:
    scores = ((0.5,) * lm.num_heads,) * lm.num_layers
    return HeadSet(((0, 1), (0, 3), (1, 0), (1, 2)), scores, lm.name, lm.fingerprint, {})


def prompts_of(lm: FrozenLM, layout: DocumentLayout) -> DocumentPrompts:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(tokens, ASKED, CANDIDATES, target="query", context_length=256, layout=layout)


def dream_gradient(
    encoder: SentenceTransformer, lm: FrozenLM, *, layout: DocumentLayout, hide_documents: bool
) -> tuple[float, Tensor]:
    """DREAM's loss and its gradient with respect to the scores."""
    loss = DREAMLoss(encoder, lm, heads=heads_of(lm), hide_documents=hide_documents, micro_batch_size=3)
    scores = torch.linspace(-1, 1, len(ASKED) * 4).sin().view(len(ASKED), 4).to(encoder.device).requires_grad_()
    value = loss.compute_loss_from_scores(scores, prompts_of(lm, layout))
    value.backward()
    assert scores.grad is not None
    return value.item(), scores.grad


@pytest.mark.parametrize("hide_documents", [False, True])
@pytest.mark.parametrize("layout", ["sequential", "independent"])
def test_dreams_gradient_is_that_of_the_cpu(
    tiny_encoder: SentenceTransformer,
    tiny_llm_folder: Path,
    dtype: LLMDtype,
    layout: DocumentLayout,
    hide_documents: bool,
) -> None:
    """Reference: loss and gradient on the CPU in float32; half precision may turn the gradient by some degrees."""
    expected, direction = dream_gradient(
        tiny_encoder, loaded(tiny_llm_folder), layout=layout, hide_documents=hide_documents
    )
    lm = loaded(tiny_llm_folder, dtype=dtype, device=GPU)
    found, gradient = dream_gradient(tiny_encoder.to(GPU), lm, layout=layout, hide_documents=hide_documents)
    assert found == pytest.approx(expected, abs=TOLERANCE[dtype])
    assert cosine(gradient, direction) > (0.9999 if dtype == "float32" else 0.98)
    assert float(gradient.norm() / direction.norm().to(GPU)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
def test_every_fused_kernel_gives_the_same_gains(tiny_llm_folder: Path, kernel: SDPBackend) -> None:
    """Reference: gains with the kernel that torch chooses by itself; one that the mask rules out is skipped."""
    lm = loaded(tiny_llm_folder, dtype="bfloat16", device=GPU)
    expected = LikelihoodScorer(lm, target="query").gain(ASKED, CANDIDATES)
    try:
        with sdpa_kernel(kernel):
            found = LikelihoodScorer(lm, target="query").gain(ASKED, CANDIDATES)
    except RuntimeError as error:
        pytest.skip(f"{kernel.name} does not take these masks: {error}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["bfloat16"])


def test_heads_are_those_of_the_cpu(tiny_llm_folder: Path, dtype: LLMDtype) -> None:
    """Reference: the scores of all heads on the CPU; near ties may change a rank where numbers are rounded."""
    relevant = np.eye(4, dtype=bool)[np.arange(len(ASKED)) % 4]

    def detected(lm: FrozenLM) -> np.ndarray:
        found = detect_query_focused_heads(lm, ASKED, documents=CANDIDATES, relevant=relevant, max_document_tokens=32)
        return np.array(found.scores)

    expected = detected(loaded(tiny_llm_folder))
    found = detected(loaded(tiny_llm_folder, dtype=dtype, device=GPU))
    np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == "float32" else 0.15)


def weights_moved(
    encoder_folder: Path, loss_of: str, lm: FrozenLM, folder: Path, *, output: Path, precision: LLMDtype, cpu: bool
) -> Tensor:
    """How two steps of training change the encoder's weights."""
    encoder = SentenceTransformer(str(encoder_folder), device="cpu" if cpu else GPU)
    before = torch.cat([p.detach().cpu().flatten() for p in encoder.parameters()]).clone()
    collection = load_collection(folder)
    candidates = mine_candidates(collection, [*collection.queries.values()], num_candidates=4)
    scorer = LikelihoodScorer(loaded(Path(lm.name)), target="query")
    texts = [[collection.corpus[i].content for i in c.document_ids] for c in candidates]
    rows = training_dataset(collection, candidates, gain=scorer.gain([c.query for c in candidates], texts))
    loss: Objective = LikelihoodGainLoss(encoder)
    collator = loss.collator()
    if loss_of == "dream":
        loss = DREAMLoss(encoder, lm, heads=heads_of(lm), hide_documents=True)
        collator = loss.collator(rows, layout="independent")
    args = NLTTrainingArguments(
        output_dir=str(output),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        optim="sgd",
        save_strategy="no",
        report_to="none",
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=cpu,
    )
    trainer = NLTTrainer(encoder, args, train_dataset=rows, loss=loss, data_collator=collator)  # type: ignore[arg-type]  # any callable
    trainer.train()
    return torch.cat([p.detach().cpu().flatten() for p in encoder.parameters()]) - before


@pytest.mark.parametrize("objective", ["likelihood_gain", "dream"])
def test_training_moves_the_weights_as_on_the_cpu(
    objective: str,
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    tiny_collection_folder: Path,
    tmp_path: Path,
    dtype: LLMDtype,
) -> None:
    """Reference: the change of all weights by the same two steps on the CPU in float32."""
    given = (tiny_encoder_folder, objective)
    expected = weights_moved(
        *given, loaded(tiny_llm_folder), tiny_collection_folder, output=tmp_path / "cpu", precision="float32", cpu=True
    )
    lm = loaded(tiny_llm_folder, dtype=dtype, device=GPU)
    found = weights_moved(
        *given, lm, tiny_collection_folder, output=tmp_path / "gpu", precision=dtype, cpu=False
    )  # fmt: skip
    assert expected.norm() > 0
    assert cosine(found, expected) > (0.999 if dtype == "float32" else 0.95)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_encoder_and_llm_on_two_gpus(tiny_encoder: SentenceTransformer, tiny_llm_folder: Path) -> None:
    """Reference: the gradient with both on one GPU."""
    (_, one), (_, two) = (
        dream_gradient(
            tiny_encoder.to("cuda:0"),
            loaded(tiny_llm_folder, device=device),
            layout="independent",
            hide_documents=True,
        )
        for device in ("cuda:0", "cuda:1")
    )
    assert cosine(one, two) > 0.9999
