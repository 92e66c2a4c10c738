"""The plan of training: the encoder's part, the LLM's, and evaluation between steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlt_trainer.encoder.parts import PART_TOKENS
from nlt_trainer.injection.document_reader import READ_TOKENS
from nlt_trainer.plan.context import LLM, Encoder, PlanContext, StagePlan
from nlt_trainer.plan.evaluation import dev_cost
from nlt_trainer.plan.flops import ADAM_COPIES, Cost, ModelShape, Schedule
from nlt_trainer.plan.probes import matmul_speed, probe_documents, probe_reading, probe_training
from nlt_trainer.plan.readings import Reading, padded
from nlt_trainer.plan.rows import Row, TrainingRows

ENCODER_SECONDS, LLM_SECONDS = 2.0, 3.0


def plan_train(context: PlanContext) -> StagePlan:
    """Steps of the encoder, what the LLM reads for them, evaluations and checkpoints."""
    encoder, args = context.encoder, context.args
    llm = context.llm if args.reads_llm else None
    if encoder is None or (args.reads_llm and llm is None):
        return StagePlan("train", None if args.reads_llm else 0.0, None, None)
    rows = TrainingRows(context, encoder)
    schedule = Schedule.of(
        rows.count,
        batch=args.train_batch_size * args.world_size,
        accumulation=args.gradient_accumulation_steps,
        epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        drop_last=args.dataloader_drop_last,
    )
    cost = EncoderCost(context, encoder, rows).of(schedule) + dev_cost(context, encoder, schedule)
    if llm is not None:
        cost += llm_cost(context, llm, rows, schedule)
    other = context.start + context.loaded[1] + encoder.seconds + rows.counted[1] + cost.other
    memory = context.base + cost.memory
    return StagePlan("train", cost.tokens, cost.flops, other + cost.seconds, other, cost.files, memory)


class EncoderCost:
    """The encoder's forward and backward passes, the optimizer's steps, and checkpoints.

    Args:
        context: of the recipe.
        encoder: its encoder.
        rows: what it reads.
    """

    def __init__(self, context: PlanContext, encoder: Encoder, rows: TrainingRows) -> None:
        self.context, self.encoder, self.rows = context, encoder, rows
        self.batch = context.args.train_batch_size
        self.trained = encoder.scale * sum(p.numel() for p in encoder.model.parameters() if p.requires_grad)

    def flops(self, shape: ModelShape | None, reading: Reading) -> float:
        """Forward and backward; of weights too where they are trained themselves, forward again where it is asked."""
        if shape is None:
            return 0.0
        args = self.context.args
        again = args.gradient_checkpointing or args.encoder_micro_batch_size is not None
        return again * shape.flops(reading) + shape.flops(reading, graph=1.0, trained=not self.context.model.lora)

    def a_row(self, rows: Sequence[Row], size: int) -> Reading:
        """What the encoder reads of a row, padding included, in batches of so many rows."""
        if self.encoder.shape is None:
            return Reading()
        k, texts = len(rows[0].texts) - 1, self.context.args.encoder_micro_batch_size
        tokens = PART_TOKENS if texts is None and self.encoder.model.device.type == "cpu" else None
        documents = padded([t for row in rows for t in row.texts[1:]], size * k, texts=texts, tokens=tokens)
        queries = padded([row.texts[0] for row in rows], size, texts=texts, tokens=tokens)
        return (documents + queries) * (1 / len(rows))

    def of(self, schedule: Schedule) -> Cost:
        context, encoder, rows, args = self.context, self.encoder, self.rows, self.context.args
        whole, count = self.a_row(rows.rows, self.batch), self.batch
        if each := self.flops(encoder.probed, whole):
            count = _rows_in(ENCODER_SECONDS / 3, each, context, most=self.batch)
        chosen = rows.typical(count, lambda row: sum(row.texts))
        rate = probe_training(
            rows.parts, [rows.candidates[i] for i in chosen], collection=context.collection, folder=context.folder
        )
        probed = self.flops(encoder.probed, self.a_row([rows.rows[i] for i in chosen], len(chosen)))
        scale = self.flops(encoder.shape, whole) / probed if probed else 1.0
        useful = [sum(map(Reading.text, row.texts), Reading()) for row in rows.rows]
        saves = schedule.times(args.save_strategy, args.save_steps)
        kept = saves if args.save_total_limit is None else min(saves, args.save_total_limit)
        seconds = schedule.queries * rate.query * scale
        tokenised = min(schedule.queries, rows.count) * rate.tokenising
        looked_up = seconds if encoder.shape is None else 0.0  # in a table, as an accelerator does no faster
        return Cost(
            flops=schedule.queries * float(np.mean([self.flops(encoder.shape, reading) for reading in useful])),
            seconds=seconds - looked_up,
            other=rate.setup + tokenised + schedule.steps * rate.step + (saves + 1) * rate.save + looked_up,
            memory=self.memory(whole.tokens),
            files=self.file_bytes(kept),
        )

    def file_bytes(self, checkpoints: int) -> float:
        """The encoder that is saved, and checkpoints with Adam's moments: of the adapter alone where there is one."""
        model, whole, trained = self.context.model, self.encoder.weight_bytes, 4 * self.trained
        if not model.lora:
            return whole + checkpoints * (whole + 2 * trained)
        if self.encoder.shape is not None:
            whole *= 4 / self.encoder.shape.bytes_per_number  # it is merged in float32
        saved = whole + model.keep_adapter * trained if model.merge_lora else trained
        return saved + checkpoints * 3 * trained

    def memory(self, tokens: float) -> float:
        """Weights, what Adam and saving keep of those that are trained, and the graph of a batch of rows."""
        args, encoder = self.context.args, self.encoder
        shared = 0.0 if self.context.model.shared_backbone else encoder.weight_bytes
        memory = shared + ADAM_COPIES * 4 * self.trained
        if encoder.shape is None:
            return memory
        at_once = self.batch * tokens
        if args.encoder_micro_batch_size is not None:  # the part of the longest
            longest = max(max(row.texts) for row in self.rows.rows)
            at_once = min(at_once, args.encoder_micro_batch_size * longest)
        layers = 1 if args.gradient_checkpointing else encoder.shape.layers
        return memory + encoder.shape.graph_bytes(at_once, layers=layers)


def _rows_in(seconds: float, flops: float, context: PlanContext, *, most: int) -> int:
    """How many rows of so many FLOPs a model may read in so many seconds, at half the speed of multiplication."""
    assert context.encoder is not None
    return min(most, max(1, int(seconds * matmul_speed(context.encoder.model.device) / 2 / flops)))


def llm_cost(context: PlanContext, llm: LLM, rows: TrainingRows, schedule: Schedule) -> Cost:
    """What the objectives that read the LLM do with it at every step; documents that are kept are read apart."""
    tokens, kept = rows.documents_read(schedule, llm.shape)
    documents = float(np.mean([row.documents.tokens for row in rows.rows]))
    once = float(np.mean([llm.shape.flops(row.documents) for row in rows.rows]))
    each = float(np.mean([row.rest_flops(llm.shape) for row in rows.rows]))
    scale = llm.probed.parameters / llm.shape.parameters
    flops = scale * (2 * each + (once if kept else 2 * once))  # of the two times that it is timed
    count = _rows_in(LLM_SECONDS, flops, context, most=context.args.train_batch_size)
    chosen = rows.typical(count, lambda row: row.documents.tokens + row.rest_tokens)
    candidates = [rows.candidates[i] for i in chosen]
    took = probe_reading(rows.parts, candidates, collection=context.collection, folder=context.folder)
    probed = sum(rows.rows[i].rest_flops(llm.probed) for i in chosen)
    own = dict(key for i in chosen for key in rows.rows[i].keys)
    apart = 0 < sum(own.values()) <= kept  # the second time all of them are there
    if not apart:
        probed += sum(llm.probed.flops(rows.rows[i].documents) for i in chosen)
    read = tokens / documents * once if documents else 0.0
    seconds = read / probed * took
    if apart:
        build, _ = rows.prompts
        assert build is not None
        found, spent = probe_documents(llm.lm, build([rows.texts_of(candidates[0])]))
        seconds = tokens / found * spent / scale
    seconds += each * schedule.queries / probed * took
    return Cost(
        tokens=tokens + float(np.mean([row.rest_tokens for row in rows.rows])) * schedule.queries,
        flops=read + each * schedule.queries,
        seconds=seconds,
        other=llm.seconds,
        memory=llm_memory(context, llm.shape, rows.rows, kept),
    )


def llm_memory(context: PlanContext, shape: ModelShape, rows: Sequence[Row], kept: float) -> float:
    """The LLM, the documents that are kept, and the largest micro-batch with its graph."""
    args = context.args
    size = args.lm_micro_batch_size
    prompt = size * max(sum(n for _, n in row.keys) or row.documents.tokens for row in rows)
    rest = size * max(row.rest_tokens for row in rows)
    targets = size * max(sum(reading.targets for reading, graph in row.rest if graph) for row in rows)
    graph = shape.layers * max(graph for _, graph in rows[0].rest)
    if args.in_batch_candidates:  # whose documents are all there at once
        kept += prompt / size * args.train_batch_size
    memory = shape.weight_bytes + (kept + 2 * (prompt + rest)) * shape.key_value_bytes
    memory += shape.activation_bytes(min(READ_TOKENS, prompt) if rows[0].keys else prompt)
    memory += shape.graph_bytes(rest, layers=graph) + shape.projection_bytes(targets)
    # Keys and values as attention's backward pass keeps them, one for each query head.
    return memory + 2 * graph * shape.attention * (prompt + rest) * shape.bytes_per_number
