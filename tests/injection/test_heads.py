"""Query-focused heads: calibrated attention against eager attention, ranking, and the head file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.choices import DocumentLayout
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.detection import (
    HeadwiseInjection,
    calibrated_mass,
    detect_heads_by_gradient,
    detect_query_focused_heads,
    push_of_heads,
    relevant_by_gain,
    tells_apart,
)
from nlt_trainer.injection.document_prompts import build_prompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night", "what makes the tides of the sea"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts.", "The moon pulls the sea."],
    ["An owl hunts at night and hears a mouse.", "Silk is spun by the larva of a moth.", "Bread."],
    ["Glass is made by melting sand.", "Yeast makes bread rise.", "The moon makes the tides."],
]


def tokens_of(lm: FrozenLM) -> PromptTokens:
    return PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)


@torch.no_grad()
def eager_mass(lm: FrozenLM, query: str, documents: list[str]) -> np.ndarray:
    """The reference: mean eager attention from the query's tokens, summed over each document: `(L, H, K)`."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    segments: list[tuple[list[int], int]] = []
    for k, document in enumerate(documents):
        segments += [(ids("Document: "), -1), (ids(document), k), (ids("\n\n"), -1)]
    segments += [(ids("Question:"), -1), (ids(f" {query}"), -2)]
    owners = np.array([owner for segment, owner in segments for _ in segment])
    attentions = lm.model(
        input_ids=torch.tensor([[i for segment, _ in segments for i in segment]]), output_attentions=True
    ).attentions
    rows = [a[0].numpy()[:, owners == -2] for a in attentions]  # L of (H, query tokens, T)
    own = [[row[..., owners == k].sum(-1).mean(-1) for k in range(len(documents))] for row in rows]  # (L, K, H)
    return np.array(own).transpose(0, 2, 1)


def expected_mass(lm: FrozenLM) -> np.ndarray:
    """Calibrated by the null query, one prompt at a time: `(B, L, H, K)`."""
    lm.model.set_attn_implementation("eager")
    rows = [eager_mass(lm, q, d) - eager_mass(lm, "N/A", d) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    return np.stack(rows)


def test_calibrated_mass_is_that_of_eager_attention(tiny_lm: FrozenLM) -> None:
    """Reference: `output_attentions` of eager attention, one unpadded prompt at a time, query minus "N/A"."""
    expected = expected_mass(tiny_lm)
    enable_document_attention(tiny_lm)
    reader = DocumentReader(tiny_lm)
    found = calibrated_mass(reader, QUERIES, documents=DOCUMENTS, tokens=tokens_of(tiny_lm))
    assert found.shape == (3, tiny_lm.num_layers, tiny_lm.num_heads, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_heads_are_ranked_by_the_rank_they_give_gold(
    tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """Reference: a planted head (layer 1, head 2) that alone turns to gold, whatever the documents' order."""
    gold = [DOCUMENTS[b][k] for b, k in enumerate((0, 0, 2))]

    def planted(reader: object, queries: list[str], *, documents: list[list[str]], **options: object) -> np.ndarray:
        mass = np.zeros((len(queries), 2, 4, 3))
        for b, texts in enumerate(documents):
            right = np.array([text in gold for text in texts])
            mass[b] = np.where(right, -1.0, 0.0)
            mass[b, 1, 2] = np.where(right, 1.0, 0.0)
            mass[b, 0, 1] = np.where(right, 0.5, np.arange(3))  # wins by position only
        return mass

    monkeypatch.setattr("nlt_trainer.injection.detection.calibrated_mass", planted)
    relevant = np.array([[True, False, False], [True, False, False], [False, False, True]])
    found = detect_query_focused_heads(
        tiny_lm,
        QUERIES,
        documents=DOCUMENTS,
        relevant=relevant,
        max_document_tokens=32,
        num_heads=2,
        batch_size=batch_size,
    )
    assert found.heads[0] == (1, 2)
    assert found.scores[1][2] == 1.0
    assert found.scores[0][0] == pytest.approx(1 / 3, abs=1e-6)
    assert len(found.heads) == 2
    assert (found.llm, found.llm_fingerprint) == (tiny_lm.name, tiny_lm.fingerprint)
    assert found.settings["num_queries"] == 3
    assert found.settings["seconds"] >= 0


def test_scores_are_mean_reciprocal_ranks(tiny_lm: FrozenLM) -> None:
    """Reference: ranks of the best relevant document under eager attention of the order that was read."""
    relevant = np.array([[True, False, False], [False, False, False], [False, True, True]])
    order = np.random.default_rng(5)
    ranks = []
    tiny_lm.model.set_attn_implementation("eager")
    for b in (0, 2):
        shuffled = order.permutation(3)
        texts = [DOCUMENTS[b][k] for k in shuffled]
        mass = eager_mass(tiny_lm, QUERIES[b], texts) - eager_mass(tiny_lm, "N/A", texts)
        best = mass[..., relevant[b][shuffled]].max(-1)
        ranks.append(1 / (1 + (mass[..., ~relevant[b][shuffled]] > best[..., None]).sum(-1)))
    found = detect_query_focused_heads(
        tiny_lm,
        QUERIES,
        documents=DOCUMENTS,
        relevant=relevant,
        max_document_tokens=32,
        num_heads=3,
        batch_size=1,
        seed=5,
    )
    np.testing.assert_allclose(found.scores, np.mean(ranks, axis=0), atol=1e-6)
    values = [found.scores[layer][head] for layer, head in found.heads]
    assert values == sorted(np.ravel(found.scores), reverse=True)[:3]


TOPICS = ["whale", "bee", "volcano", "tea", "bridge", "clock", "bread", "moon"]
TEXTS = [f"Many people saw a {t} and the {t} was old. They say that one {t} is like any {t} there." for t in TOPICS]


def test_a_planted_head_is_found(planted_lm: FrozenLM) -> None:
    """Reference: the one head of a model that attends to equal tokens, hence to the document of the query's topic."""
    documents = [[TEXTS[(b + k) % 8] for k in (1, 0, 3, 2)] for b in range(8)]
    gain = np.random.default_rng(0).normal(0, 0.05, (8, 4))
    gain[:, 1] += 1.0
    found = detect_query_focused_heads(
        planted_lm,
        [f"where does the {topic} live" for topic in TOPICS],
        documents=documents,
        relevant=relevant_by_gain(gain),
        max_document_tokens=32,
        num_heads=2,
    )
    assert found.heads[0] == (1, 2)
    assert found.scores[1][2] > 0.7
    assert found.scores[1][2] > found.scores[found.heads[1][0]][found.heads[1][1]] + 0.2
    assert found.settings["score"] == "reciprocal_rank"
    assert found.score_name == "mean reciprocal rank"
    assert found.settings["llm_revision"] == "c0ffee"


def test_queries_that_tell_nothing_are_left_out(tiny_lm: FrozenLM) -> None:
    """Reference: queries whose documents are all equally relevant do not change the scores of the others."""
    assert tells_apart(np.array([[True, False], [True, True], [False, False]])).tolist() == [True, False, False]
    assert tells_apart(np.array([[0.1, 0.2], [0.3, 0.3]])).tolist() == [True, False]

    def detect(part: slice) -> HeadSet:
        gain = np.array([[0.1, 0.5, -0.1], [0.2, 0.2, 0.2], [0.0, 0.1, 0.2]])[part]
        return detect_query_focused_heads(
            tiny_lm,
            QUERIES[part],
            documents=DOCUMENTS[part],
            relevant=relevant_by_gain(gain),
            max_document_tokens=32,
            batch_size=1,
        )

    assert detect(slice(0, 2)).scores == detect(slice(0, 1)).scores
    assert detect(slice(0, 3)).settings["num_queries"] == 2


@pytest.mark.parametrize("layout", ["sequential", "independent"])
def test_the_push_of_a_head_is_a_finite_difference(tiny_lm: FrozenLM, layout: DocumentLayout) -> None:
    """Reference: the loss in float64 as the shares of one head change, with all heads injected."""
    tiny_lm.model.double()
    enable_document_attention(tiny_lm)
    prompts = build_prompts(tokens_of(tiny_lm), QUERIES, DOCUMENTS, target="query", context_length=256, layout=layout)
    reader = DocumentReader(tiny_lm)
    found = push_of_heads(reader, prompts, num_documents=3)  # (B, L, H, K)
    heads = {layer: torch.arange(4) for layer in range(2)}
    equal = torch.full((3, 3), 1 / 3, dtype=torch.float64).log()

    def losses(layer: int, head: int, document: int, step: float) -> np.ndarray:
        shares = {each: equal[:, None].repeat(1, 4, 1) for each in heads}
        shares[layer][:, head, document] += step
        injection = HeadwiseInjection(equal, prompts.key_documents(3), prompts.suffix_mask, heads, shares=shares)
        with torch.no_grad():
            hidden = reader.read_suffix(prompts, reader.read_documents(prompts), injection)
            return reader.target_losses(hidden, prompts).numpy()

    for layer, head, document in ((0, 0, 0), (0, 3, 2), (1, 1, 1), (1, 2, 0)):
        rise = losses(layer, head, document, 1e-2) - losses(layer, head, document, -1e-2)
        np.testing.assert_allclose(-found[:, layer, head, document], rise / 2e-2, rtol=2e-3, atol=2e-5)
    assert np.abs(found).max() > 1e-2


def test_the_pushes_of_all_heads_are_dreams_gradient(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: DREAM's loss with all heads at equal scores and the mass kept; its gradient is the sum over heads."""
    enable_document_attention(tiny_lm)
    every = tuple((layer, head) for layer in range(2) for head in range(4))
    heads = HeadSet(every, ((0.0,) * 4,) * 2, "tiny", tiny_lm.fingerprint, {})
    loss = DREAMLoss(tiny_encoder, tiny_lm, heads=heads, document_mass="kept")
    prompts = build_prompts(tokens_of(tiny_lm), QUERIES, DOCUMENTS, target="query", context_length=256)
    scores = torch.zeros(3, 3, requires_grad=True)
    loss.compute_loss_from_scores(scores, prompts).backward()
    assert scores.grad is not None
    found = push_of_heads(loss.reader, prompts, num_documents=3).sum((1, 2))
    np.testing.assert_allclose(found / 3, -scores.grad.numpy(), rtol=1e-3, atol=1e-7)


def test_heads_by_gradient_stand_by_signal_to_noise(tiny_lm: FrozenLM) -> None:
    """Reference: mean over standard deviation in numpy, of pushes of single queries with documents in given order."""
    relevant = np.array([[True, False, False], [False, True, False], [False, True, True]])
    found = detect_heads_by_gradient(
        tiny_lm,
        QUERIES,
        documents=DOCUMENTS,
        relevant=relevant,
        target="query",
        max_document_tokens=32,
        num_heads=3,
        batch_size=2,
        seed=5,
    )
    signals = []
    for query, documents, known in zip(QUERIES, DOCUMENTS, relevant, strict=True):
        prompts = build_prompts(
            tokens_of(tiny_lm), [query], [documents], target="query", context_length=256, layout="independent"
        )
        push = push_of_heads(DocumentReader(tiny_lm), prompts, num_documents=3)[0]
        signals.append(push[..., known].mean(-1) - push[..., ~known].mean(-1))
    expected = np.mean(signals, axis=0) / np.std(signals, axis=0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3, atol=1e-5)
    values = [found.scores[layer][head] for layer, head in found.heads]
    assert values == sorted(np.ravel(found.scores), reverse=True)[:3]
    assert found.score_name == "signal to noise"
    assert (found.settings["target"], found.settings["layout"]) == ("query", "independent")


def table_of(scores: list[list[float]], weights: str = "w") -> HeadSet:
    return HeadSet((), tuple(map(tuple, scores)), "llm", {"weights": weights}, {})


def test_heads_are_selected_from_their_scores() -> None:
    """Reference: the order of six scores by hand; equal ones by layer and head."""
    table = table_of([[0.5, 0.9, 0.1], [0.5, 0.2, 0.7]])
    assert table.select(3).heads == ((0, 1), (1, 2), (0, 0))
    assert table.select(2, "worst").heads == ((0, 2), (1, 1))
    worst = table.select(2, "worst", seed=3)
    assert (worst.scores, worst.settings) == (table.scores, {"selection": "worst", "selection_seed": 3})
    with pytest.raises(NLTError, match=r"^selection 'bset' is unknown; choose one of best, random, worst"):
        table.select(2, "bset")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(NLTError, match=r"num_heads is 0; it must be at least 1"):
        table.select(0)


def test_more_heads_than_there_are_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Reference: the warning's text; all heads are kept."""
    assert len(table_of([[0.5, 0.9]]).select(16).heads) == 2
    assert "num_heads is 16, and LLM 'llm' has 2: all are kept" in caplog.text


def test_random_heads_are_drawn_from_all_alike() -> None:
    """Reference: 1,200 draws of 2 among 6; each head has a share of 1/3 (four standard errors), whatever its score."""
    table = table_of([[0.5, 0.9, 0.1], [0.5, 0.2, 0.7]])
    draws = [table.select(2, "random", seed=seed).heads for seed in range(1200)]
    assert all(len(set(heads)) == 2 for heads in draws)
    counts = [sum((layer, head) in heads for heads in draws) for layer in range(2) for head in range(3)]
    assert max(abs(count / 1200 - 1 / 3) for count in counts) < 4 * (2 / 9 / 1200) ** 0.5
    assert table.select(2, "random", seed=7).heads == table.select(2, "random", seed=7).heads


def test_the_jaccard_index_of_the_best_heads() -> None:
    """Reference: sets by hand: {0.1, 1.2, 0.0} and {0.1, 1.1, 1.2} share 2 of 4; what was kept plays a part only
    where it is of that number."""
    ours = table_of([[0.5, 0.9, 0.1], [0.4, 0.2, 0.7]])
    theirs = table_of([[0.1, 0.9, 0.2], [0.3, 0.8, 0.7]]).select(1, "worst")
    assert ours.jaccard(theirs, 3) == theirs.jaccard(ours, 3) == 0.5
    assert ours.jaccard(ours, 2) == 1.0
    assert ours.jaccard(theirs.select(3, "worst"), 3) == 0.2
    with pytest.raises(NLTError, match=r"heads of different LLMs, 'llm' and 'llm', cannot be compared"):
        ours.jaccard(table_of([[0.1]], "other"), 1)


def test_no_gold_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: the remedy in the message."""
    with pytest.raises(NLTError, match=r"no query has a relevant document.*give more queries or candidates"):
        detect_query_focused_heads(
            tiny_lm, QUERIES, documents=DOCUMENTS, relevant=np.zeros((3, 3), bool), max_document_tokens=32
        )


def test_attention_that_is_not_finite_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: NaN has no rank; one head's query weights are NaN, as after an overflow."""
    enable_document_attention(tiny_lm)
    tiny_lm.model.get_parameter("model.layers.1.self_attn.q_proj.weight")[:8] = torch.nan
    with pytest.raises(NLTError, match=r"attention to the documents is not finite.*use dtype float32 or bfloat16"):
        detect_query_focused_heads(
            tiny_lm, QUERIES, documents=DOCUMENTS, relevant=np.eye(3, dtype=bool), max_document_tokens=32
        )


def test_the_file_is_a_round_trip(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the set that was saved."""
    heads = HeadSet(
        ((1, 2), (0, 3), (1, 0)), ((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)), "llm", tiny_lm.fingerprint, {"a": 1}
    )
    heads.save(tmp_path / "heads.json")
    assert HeadSet.load(tmp_path / "heads.json") == heads
    layers = heads.by_layer(torch.device("cpu"))
    assert {layer: indices.tolist() for layer, indices in layers.items()} == {0: [3], 1: [0, 2]}


def test_a_head_that_has_changed_is_refused(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the file's name in the message; the other head is one of the table too."""
    path = tmp_path / "heads.json"
    HeadSet(((1, 2), (0, 3)), ((0.1,) * 4,) * 2, "llm", tiny_lm.fingerprint, {}).save(path)
    value = json.loads(path.read_text())
    value["heads"][0] = [1, 3]
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"heads.json: is not as it was written.* remove its entry checksum if you"):
        HeadSet.load(path)


def test_heads_belong_to_the_weights_they_were_found_in(tiny_lm: FrozenLM) -> None:
    """Reference: another dtype or adapter is the same LLM, other weights are not."""
    heads = HeadSet(((0, 0),), ((1.0,),), "there", {**tiny_lm.fingerprint, "dtype": "bfloat16", "adapter": "x"}, {})
    heads.check(tiny_lm)
    other = dataclasses.replace(heads, llm_fingerprint={**tiny_lm.fingerprint, "weights": "y"})
    with pytest.raises(NLTError, match=r"found in LLM 'there', not in .*; run `nlt detect_heads` with this LLM"):
        other.check(tiny_lm)


GOOD = {"heads": [[0, 0]], "scores": [[1.0, 0.5]], "llm": "x", "llm_fingerprint": {"weights": "w"}, "settings": {}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a JSON list and no head file; name the file that `nlt detect_heads` wrote"),
        (
            json.dumps({k: v for k, v in GOOD.items() if k != "scores"}),
            "is no head file, it has no scores; name the file",
        ),
        ('{"queries": 3}', "it has no heads, no scores, no llm, no llm_fingerprint, no settings; name the file"),
        (json.dumps({**GOOD, "heads": [[0]]}), "is a damaged head file"),
        (json.dumps({**GOOD, "heads": [["a", 0]]}), "is a damaged head file"),
        (json.dumps({**GOOD, "heads": [[0, 2]]}), r"head \[0, 2\] lies outside its score table"),
        (json.dumps({**GOOD, "heads": [[1, 0]]}), r"head \[1, 0\] lies outside"),
        (json.dumps({**GOOD, "heads": [[-1, 0]]}), r"head \[-1, 0\] lies outside"),
        (json.dumps({**GOOD, "llm_fingerprint": {}}), "is a damaged head file .*weights"),
        (json.dumps({**GOOD, "llm_fingerprint": None}), "is a damaged head file"),
        (json.dumps({**GOOD, "heads": []}), "holds no head"),
        (json.dumps({**GOOD, "heads": [[0, 0], [0, 0]]}), "is a damaged head file .*a head stands twice"),
        (json.dumps({**GOOD, "scores": [[0.5, float("nan")]]}), "damaged head file .*a score is not finite"),
        (json.dumps({**GOOD, "scores": [[0.5, 10**400]]}), "is a damaged head file .*too large"),
        (json.dumps({**GOOD, "scores": [[0.5, 0.1], [0.2]]}), "is a damaged head file .*inhomogeneous"),
        (json.dumps({**GOOD, "settings": None}), "is a damaged head file .*not a mapping"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    """Reference: the file and the remedy in the message; the good file is read."""
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(GOOD))
    assert HeadSet.load(path).heads == ((0, 0),)
    path.write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        HeadSet.load(path)
    assert caught.value.path == path


def test_gold_by_gain() -> None:
    """Reference: the best candidate of each row, where its gain is positive."""
    found = relevant_by_gain([[0.1, 0.3, -0.2], [-0.1, -0.3, 0.0], [0.2, 0.2, 0.1]])
    assert found.tolist() == [[False, True, False], [False, False, False], [True, True, False]]
