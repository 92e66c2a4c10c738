"""The LLM's part of a DREAM step, from scores to their gradient: ours against one full graph.

```bash
python tests/benchmarks/dream_speed.py --collection data/nq_gold
```

The full graph is the plain way: stock eager attention, the injection written out on its weights, documents, query
and target in one forward pass with a graph, `labels` given to the model, one prompt. It reads the same prompts, in
both layouts; loss and gradient of ours are compared with its, taken in float64 from its logits. `cached` is the second
visit of documents that do not see each other. At last, documents that are hidden from the heads which are not injected
are compared with documents that these heads see. The encoder's part is the same whatever the LLM does, and left out.
Memory is that of a fresh process for each case, weights and imports included.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import LLM, collection_at, in_fresh_process, in_turn, parser, peak_mib, ratio, record, show
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AttentionInterface

from nlt_trainer.choices import DocumentLayout
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates
from nlt_trainer.data.training import relevance
from nlt_trainer.injection.attention import IMPLEMENTATION
from nlt_trainer.injection.detection import detect_query_focused_heads
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.prompts import PromptTemplate

FULL_GRAPH = "full_graph_injection"
Step = Callable[[Tensor, DocumentPrompts], Tensor]
"""Loss of one prompt from scores `(1, K)`, with a graph to them."""


@dataclass(frozen=True)
class Injection:
    """What the full graph's attention needs.

    Args:
        weights: `(K,)`, the documents' shares.
        documents: `(L,)`, each token's document, K where it has none.
        begin: the first row that is injected.
        heads: layer to heads.
    """

    weights: Tensor
    documents: Tensor
    begin: int
    heads: Mapping[int, Tensor]


def eager_injection(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    injection: Injection,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as transformers' eager attention computes it, with p' of arXiv 2606.24667 in the chosen heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    p = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)  # (1, H, L, L)
    heads = injection.heads.get(int(module.layer_idx))  # type: ignore[arg-type]  # an integer in every layer
    if heads is not None:
        rows = p[:, heads, injection.begin :]  # (1, h, S, L)
        k = len(injection.weights)
        mass = torch.stack([rows[..., injection.documents == i].sum(-1) for i in range(k)], -1)  # (1, h, S, K)
        factor = injection.weights * mass.sum(-1, keepdim=True) / mass
        factor = torch.cat([factor, torch.ones_like(factor[..., :1])], -1)[..., injection.documents]  # (1, h, S, L)
        injected = torch.cat([p[:, heads, : injection.begin], rows * factor], 2)
        p = p.index_copy(1, heads, injected)
    return (p @ value).transpose(1, 2).contiguous(), p


def full_graph(lm: FrozenLM, heads: HeadSet, *, exact: bool = False) -> Step:
    """The plain step; switches the LLM to eager attention with injection.

    `exact` takes the loss in float64: torch adds up a whole vocabulary in float32 on a CPU such that a loss is off by
    1e-5, and its gradient to the scores by 1e-4.
    """
    AttentionInterface.register(FULL_GRAPH, eager_injection)
    lm.model.set_attn_implementation(FULL_GRAPH)
    by_layer = heads.by_layer(lm.device)

    def step(scores: Tensor, prompts: DocumentPrompts) -> Tensor:
        ids = torch.cat([prompts.prompt_ids, prompts.suffix_ids], 1)
        begin, length = prompts.prompt_ids.shape[1], ids.shape[1]
        segments = nn.functional.pad(prompts.prompt_segments[0], (0, length - begin))
        seen = (segments == 0) | (segments[:, None] == segments)
        seen[begin:] = True  # query and target see all documents
        mask = torch.zeros(length, length).masked_fill(~(seen & seen.new_ones(seen.shape).tril()), -torch.inf)
        behind = int(prompts.prompt_positions.max()) + 1
        positions = torch.cat([prompts.prompt_positions, torch.arange(behind, behind + length - begin)[None]], 1)
        injection = Injection(scores[0].softmax(-1), prompts.key_documents(scores.shape[1])[0], begin, by_layer)
        target = nn.functional.pad(prompts.suffix_target, (begin, 0))
        output = lm.model(
            input_ids=ids,
            attention_mask=mask[None, None],
            position_ids=positions,
            labels=None if exact else torch.where(target, ids, -100),
            use_cache=False,
            injection=injection,
        )
        if not exact:
            return output.loss
        columns = target[0].nonzero()[:, 0]
        return nn.functional.cross_entropy(output.logits[0, columns - 1].double(), ids[0, columns])

    return step


def objective(lm: FrozenLM, heads: HeadSet, **given: Any) -> DREAMLoss:
    """The objective in the paper's form, unless otherwise given; the encoder has no part in it."""
    form: dict[str, Any] = {"document_mass": "kept", "hide_documents": False, "micro_batch_size": 1, **given}
    return DREAMLoss(SentenceTransformer(modules=[nn.Identity()], device="cpu"), lm, heads=heads, **form)


def ours(lm: FrozenLM, heads: HeadSet, *, cache_gib: float = 0.0) -> Step:
    """The objective's own step."""
    return objective(lm, heads, document_cache_gib=cache_gib).compute_loss_from_scores


def gradient(step: Step, scores: Tensor, prompts: DocumentPrompts) -> tuple[float, Tensor]:
    """Loss and dL/dscores, `(1, K)`."""
    leaf = scores.clone().requires_grad_()
    loss = step(leaf, prompts)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad


@dataclass(frozen=True)
class Task:
    """What all cases read: prompts of one query each, in both layouts, and their scores `(1, K)`."""

    prompts: dict[DocumentLayout, list[DocumentPrompts]]
    scores: list[Tensor]
    heads: HeadSet


def make_task(lm: FrozenLM, collection: Collection, options: Any) -> Task:
    """Prompts of judged queries with the longest of their BM25 candidates, which are cut to `max_document_tokens`.

    Heads are found by the judgements, as the paper does.
    """
    judged = collection.split_queries(options.split)
    step = max(1, len(judged) // (options.prompts + options.head_queries))
    pool = min(4 * options.candidates, len(collection.corpus))
    mined = mine_candidates(collection, judged[::step], num_candidates=pool)
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=options.max_document_tokens)

    def full_documents(chosen: QueryCandidates) -> list[str]:
        """A query's candidates, those first that fill `max_document_tokens`."""
        texts = [collection.corpus[d].content for d in chosen.document_ids]
        return sorted(texts, key=lambda text: -len(tokens.document(text)[0]))

    own, known = mined[: options.prompts], mined[options.prompts :][: options.head_queries]
    heads = detect_query_focused_heads(
        lm,
        [c.query for c in known],
        documents=[[collection.corpus[d].content for d in c.document_ids[: options.head_candidates]] for c in known],
        relevant=relevance(known, collection.split_qrels(options.split))[:, : options.head_candidates],
        max_document_tokens=options.max_document_tokens,
        num_heads=options.num_heads,
    )
    layouts: tuple[DocumentLayout, ...] = ("sequential", "independent")
    prompts = {
        layout: [
            build_prompts(
                tokens,
                [c.query],
                [full_documents(c)[: options.candidates]],
                target="query",
                context_length=lm.context_length,
                layout=layout,
            )
            for c in own
        ]
        for layout in layouts
    }
    draw = torch.Generator().manual_seed(0)
    scores = [torch.randn(1, options.candidates, generator=draw) for _ in own]
    return Task(prompts, scores, heads)


def steps_of(task: Task, layout: DocumentLayout, step: Step) -> Callable[[], list[tuple[float, Tensor]]]:
    """One step for each prompt."""
    pairs = list(zip(task.scores, task.prompts[layout], strict=True))
    return lambda: [gradient(step, scores, prompts) for scores, prompts in pairs]


def disagreement(found: Sequence[tuple[float, Tensor]], expected: Sequence[tuple[float, Tensor]]) -> dict[str, float]:
    """Largest relative difference of losses, and of gradients by the largest entry of each."""
    return {
        "loss": max(abs(a - b) / abs(b) for (a, _), (b, _) in zip(found, expected, strict=True)),
        "gradient": max(
            float((a - b).abs().max() / b.abs().max()) for (_, a), (_, b) in zip(found, expected, strict=True)
        ),
    }


def with_attention(lm: FrozenLM, name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call under an attention implementation: the cases share one LLM."""

    def run() -> Any:
        lm.model.set_attn_implementation(name)
        return call()

    return run


def compare(lm: FrozenLM, task: Task, layout: DocumentLayout, *, runs: int, cache_gib: float) -> dict[str, Any]:
    """Seconds a step of all cases in one layout, and how far loss and gradient are from the full graph's."""
    cases = {"full graph": with_attention(lm, FULL_GRAPH, steps_of(task, layout, full_graph(lm, task.heads)))}
    ours_name = "ours" if not cache_gib else "ours, cached"
    cases[ours_name] = with_attention(
        lm, IMPLEMENTATION, steps_of(task, layout, ours(lm, task.heads, cache_gib=cache_gib))
    )
    first = cases[ours_name]()  # the warm-up, which fills the cache
    exact = with_attention(lm, FULL_GRAPH, steps_of(task, layout, full_graph(lm, task.heads, exact=True)))()
    seconds, values = in_turn(cases, runs=runs)
    each = {name: [s / len(task.scores) for s in times] for name, times in seconds.items()}
    again = ratio(each["full graph"], each[ours_name])
    return {
        "layout": layout,
        "prompt_tokens": [prompts.num_tokens for prompts in task.prompts[layout]],
        "seconds": each,
        "first": disagreement(first, exact),
        "disagreement": disagreement(values[ours_name][-1], exact),
        "rows": [
            {
                "layout": layout,
                "tokens": statistics.mean(prompts.num_tokens for prompts in task.prompts[layout]),
                "case": name,
                "seconds a step": statistics.median(times),
                "ours is faster by": again["ratio"] if name == "full graph" else None,
                "lowest": again["lowest"] if name == "full graph" else None,
                "highest": again["highest"] if name == "full graph" else None,
            }
            for name, times in each.items()
        ],
    }


def compare_hidden(lm: FrozenLM, task: Task, *, runs: int) -> dict[str, Any]:
    """Seconds a step with documents that all heads see and with documents hidden from most, read anew and kept."""
    lm.model.set_attn_implementation(IMPLEMENTATION)
    rows: list[dict[str, Any]] = []
    for cache_gib in (0, 2):
        losses = {
            name: objective(lm, task.heads, document_mass="one", hide_documents=hidden, document_cache_gib=cache_gib)
            for name, hidden in (("seen by all heads", False), ("hidden", True))
        }
        cases = {name: steps_of(task, "independent", loss.compute_loss_from_scores) for name, loss in losses.items()}
        for step in cases.values():
            step()  # the warm-up, which fills the cache
        seconds, _ = in_turn(cases, runs=runs)
        faster = ratio(seconds["seen by all heads"], seconds["hidden"])
        rows.extend(
            {
                "documents": f"{name}, {'kept' if cache_gib else 'read anew'}",
                "seconds a step": statistics.median(times) / len(task.scores),
                "hidden is faster by": faster["ratio"] if name != "hidden" else None,
                "lowest": faster["lowest"] if name != "hidden" else None,
                "highest": faster["highest"] if name != "hidden" else None,
            }
            for name, times in seconds.items()
        )
    return {"rows": rows, "layers": sorted(task.heads.by_layer(lm.device))}


def memory(case: str, options: Any) -> dict[str, int]:
    """Peak memory of this process after one case has made one step."""
    lm = FrozenLM.from_pretrained(options.llm, device="cpu")
    options.prompts = 1
    task = make_task(lm, collection_at(options.collection, split=options.split), options)
    loaded = peak_mib()
    step = full_graph(lm, task.heads) if case == "full graph" else ours(lm, task.heads)
    steps_of(task, "sequential", step)()
    return {"loaded_mib": round(loaded), "peak_mib": round(peak_mib())}


def main(argv: list[str] | None = None) -> None:
    """Compare both layouts and the memory; print tables and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--llm", default=LLM)
    flags.add_argument("--collection", type=Path, help="BEIR folder with judged queries")
    flags.add_argument("--split", default="dev")
    flags.add_argument("--prompts", type=int, default=1, help="steps of one query each")
    flags.add_argument("--candidates", type=int, default=16)
    flags.add_argument("--max_document_tokens", type=int, default=96)
    flags.add_argument("--num_heads", type=int, default=16)
    flags.add_argument("--head_queries", type=int, default=4)
    flags.add_argument("--head_candidates", type=int, default=4)
    flags.add_argument("--memory", choices=("full graph", "ours"), help=argparse.SUPPRESS)
    options = flags.parse_args(argv)
    if options.memory:
        print(json.dumps(memory(options.memory, options)))
        return
    given = [f"--{name}={value}" for name, value in vars(options).items() if value is not None and name != "json"]
    peaks = {case: in_fresh_process(__file__, *given, f"--memory={case}") for case in ("full graph", "ours")}
    lm = FrozenLM.from_pretrained(options.llm, device="cpu")
    task = make_task(lm, collection_at(options.collection, split=options.split), options)
    plain = compare(lm, task, "sequential", runs=options.runs, cache_gib=0)
    cached = compare(lm, task, "independent", runs=options.runs, cache_gib=2)
    hidden = compare_hidden(lm, task, runs=options.runs)
    show(plain["rows"] + cached["rows"])
    show(hidden["rows"])
    show([{"case": case, **peak} for case, peak in peaks.items()])
    figures = {
        "dream_vs_full_graph": plain["rows"][0]["ours is faster by"],
        "dream_cached_vs_full_graph": cached["rows"][0]["ours is faster by"],
        "dream_memory_vs_full_graph": round(peaks["full graph"]["peak_mib"] / peaks["ours"]["peak_mib"], 3),
        "dream_hidden_vs_seen": hidden["rows"][0]["hidden is faster by"],
        "dream_hidden_vs_seen_kept": hidden["rows"][2]["hidden is faster by"],
    }
    print(json.dumps(figures | {"disagreement": plain["first"], "cached": cached["disagreement"]}))
    record(
        options.json, "dream", figures, {"sequential": plain, "independent": cached, "hidden": hidden, "memory": peaks}
    )


if __name__ == "__main__":
    main()
