"""DREAM: attention heads of the frozen LLM follow the encoder's scores, and the LLM's loss trains the encoder."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor
from transformers import DynamicCache

from nlt_trainer.choices import DocumentMass, check_choice
from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.encoder.similarity import all_cosines, first_of_equals, label_of, no_negatives
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import ScoreInjection
from nlt_trainer.injection.document_pool import DocumentPool, cache_rows
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.objectives.llm_objective import LLMObjective
from nlt_trainer.objectives.micro_batched_loss import micro_batched_loss


class DREAMLoss(LLMObjective):
    r"""Next-token loss of the target under a frozen LLM whose selected heads attend as the encoder scores documents.

    With :math:`w_{bk} = \mathrm{softmax}_k(\cos(e(q_b), e(d_{bk})) / \tau)`, the attention p of a selected head, from
    every row after the documents to token t of document k, becomes

    .. math:: p'_t = p_t \, w_{bk} \, \frac{\sum_j m_j}{m_k}, \qquad m_k = \sum_{t \in d_k} p_t

    The loss is the mean negative log-likelihood of the target's tokens, averaged over queries. The gradient passes
    through w alone, so it reaches only the encoder. The shares w of a query's documents sum to 1, so raising the share
    of one document lowers those of the others.

    The heads that are not selected read the documents too. The LLM may then find the right document by itself, and the
    loss hardly depends on the shares. With `hide_documents` these heads see only the rest of the prompt: the query,
    the target and what stands around the documents, such as a line break that has read the document before it.

    With `in_batch_candidates` the selected heads of a query choose among the U different documents of the global
    batch. Then w is a softmax over all of them, and their keys and values replace those of the prompt's own documents.
    They share the attention that the head gives the prompt's own K documents, so that it does not grow with the batch.
    The other heads still read the prompt's K documents, unless these are hidden. The LLM reads no more tokens than
    before, but attention has more keys, and memory must hold the keys and values of all B x K documents at once. The
    documents in `no_negatives` have no share for their query.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | the tensors of `DocumentPrompts` of the same documents, in the same order; |
        |                    | `candidate_keys` `(B, K)`, equal for equal texts, for in-batch candidates, |
        |                    | optionally with `no_negatives` `(B, R)`, keys of further texts, then -1    |

    Args (`model`, `temperature` and `micro_batch_size` are those of `LLMObjective`):
        lm: the frozen LLM; a plain object, so that it is neither wrapped nor saved.
        heads: the heads to inject, found in this LLM.
        document_mass: the attention that is divided among the documents: all that the head has (`one`), or what it
            gives them by itself (`kept`, the paper's).
        hide_documents: whether all other heads see no document; in the paper's form, False, they do.
        in_batch_candidates: whether a query's heads choose among the documents of all queries. This needs documents
            that do not see each other.
        document_cache_gib: memory, GiB, in which keys and values are kept from step to step, for documents that do not
            see each other; 0 keeps none.

    When to use it: where the target can only be predicted from several documents together, or where no gains should be
    stored. The LLM reads B prompts of K documents at each step. Relation to its siblings: `LikelihoodGainLoss` reads
    each document alone and only once.

    Source: DREAM (arXiv 2606.24667). The LLM's part runs in micro-batches as far as dL/dw, and then the encoder's
    backward pass runs once. The documents' part of a prompt is read without a graph, which changes no gradient.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        loss = DREAMLoss(encoder, lm, heads=HeadSet.load("heads.json"), temperature=0.05)
        collator = loss.collator(dataset, layout="independent")
        ```
    """

    reader: DocumentReader

    def __init__(
        self,
        model: SentenceTransformer,
        lm: FrozenLM,
        *,
        heads: HeadSet,
        temperature: float = 0.05,
        document_mass: DocumentMass = "one",
        hide_documents: bool = True,
        in_batch_candidates: bool = False,
        micro_batch_size: int = 2,
        document_cache_gib: float = 0.0,
    ) -> None:
        reader = DocumentReader(lm, cache_bytes=int(document_cache_gib * 2**30))
        super().__init__(model, reader, temperature=temperature, micro_batch_size=micro_batch_size)
        if document_cache_gib < 0:
            raise NLTError(f"document_cache_gib is {document_cache_gib}; it must be at least 0, which keeps none")
        check_choice("document_mass", document_mass, DocumentMass)
        heads.check(lm)
        self.document_mass = document_mass
        self.hide_documents = hide_documents
        self.in_batch_candidates = in_batch_candidates
        self.heads = heads.by_layer(lm.device)

    @classmethod
    def texts_for(cls, llm: PromptFrame) -> LLMTexts:
        return LLMTexts(prompts=llm)

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        prompts = DocumentPrompts.from_dict(labels)
        if not self.in_batch_candidates:
            return {"dream": self.compute_loss_from_scores(self.own_scores(queries, documents), prompts)}
        (b, k), prompts = documents.shape[:2], prompts.to(self.reader.lm.device)
        cache = self.reader.read_documents(prompts)
        pool = DocumentPool.of_batch(prompts, cache, num_candidates=k, layers=self.heads)
        own_keys = label_of(labels, "candidate_keys", remedy="NLTCollator makes them")
        keys, documents = own_keys.flatten(), documents.flatten(0, 1)  # (B * K,), (B * K, D)
        if torch.distributed.is_initialized():  # W processes: (W * B * K,), (W * B * K, D)
            pool = pool.gathered(b * k, keys.device)
            keys, documents = all_gather(keys), all_gather_with_grad(documents)
        first = first_of_equals(keys)
        scores = all_cosines(queries, documents[first]) / self.temperature  # (B, U)
        scores = scores.masked_fill(no_negatives(labels, keys[first], own_keys), -torch.inf)
        pool = pool.only(first.to(self.reader.lm.device))
        return {"dream": self.compute_loss_from_scores(scores, prompts, read=cache, pool=pool)}

    def compute_loss_from_scores(
        self,
        scores: Tensor,
        prompts: DocumentPrompts,
        *,
        read: DynamicCache | None = None,
        pool: DocumentPool | None = None,
    ) -> Tensor:
        """Loss from scores and their prompts; a scalar in float32 with a gradient to the scores.

        Args:
            scores: `(B, K)`, or `(B, U)` with a pool.
            prompts: B prompts of K documents.
            read: keys and values of the prompts' documents; `None` if they have not been read yet.
            pool: U documents that the selected heads choose among, instead of the prompts' own.
        """
        device = self.reader.lm.device
        order = prompts.by_cost

        def losses(log_weights: Tensor, part: slice) -> Tensor:
            rows = order[part]
            own = prompts.rows(rows).without_padding(prompt=read is None).to(device)
            return self.read(log_weights, own, cache=cache_rows(read, rows) if read else None, pool=pool)

        log_weights = scores.log_softmax(-1)[order.to(scores.device)]
        return micro_batched_loss(losses, log_weights, micro_batch_size=self.micro_batch_size, device=device)

    def read(
        self,
        log_weights: Tensor,
        prompts: DocumentPrompts,
        *,
        cache: DynamicCache | None = None,
        pool: DocumentPool | None = None,
    ) -> Tensor:
        """Loss of each prompt, `(B,)`, nats per target token; log-weights are `(B, K)`, or `(B, U)` with a pool."""
        if cache is None:
            cache = self.reader.read_documents(prompts)
        k = log_weights.shape[1] if pool is None else pool.num_candidates
        documents, others = prompts.key_documents(k), prompts.outside_documents(k) if self.hide_documents else None
        injection = ScoreInjection(
            log_weights, documents, prompts.suffix_mask, self.heads, self.document_mass, pool, others
        )
        hidden = self.reader.read_suffix(prompts, cache, injection, begin=pool.end if pool else None)
        return self.reader.target_losses(hidden, prompts)

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        heads = [[layer, int(head)] for layer, indices in self.heads.items() for head in indices]
        return {
            "temperature": self.temperature,
            "document_mass": self.document_mass,
            "hide_documents": self.hide_documents,
            "in_batch_candidates": self.in_batch_candidates,
            "llm": self.reader.lm.name,
            "heads": heads,
        }
