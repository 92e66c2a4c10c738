"""Tiny models and a tiny collection, which tests and the programs beside them build in process."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nlt_trainer.text_files import write_jsonl

DOCUMENTS = {
    "d01": ("Whale", "The blue whale is the largest animal that ever lived on the earth."),
    "d02": ("Bee", "A honey bee visits many flowers and carries pollen back to the hive."),
    "d03": ("Volcano", "A volcano opens where hot molten rock breaks through the crust."),
    "d04": ("Tea", "Green tea is made from leaves that were heated soon after the harvest."),
    "d05": ("Bridge", "A suspension bridge hangs its road from steel cables between two towers."),
    "d06": ("Clock", "A pendulum clock keeps time with a weight that swings from side to side."),
    "d07": ("Bread", "Yeast makes bread rise because it turns sugar into gas and alcohol."),
    "d08": ("Moon", "The moon pulls the water of the sea and so makes the tides."),
    "d09": ("Glass", "Glass is made by melting sand with soda and lime in a furnace."),
    "d10": ("Owl", "An owl hunts at night and hears a mouse under the snow."),
    "d11": ("Compass", "A compass needle turns to the north because the earth is a magnet."),
    "d12": ("Silk", "Silk is spun by the larva of a moth that eats mulberry leaves."),
}
QUERIES = {
    "q1": ("which animal is the largest of all", "the blue whale", "d01", "train"),
    "q2": ("why does bread rise", "yeast turns sugar into gas", "d07", "train"),
    "q3": ("what makes the tides of the sea", "the pull of the moon", "d08", "train"),
    "q4": ("how is glass made", "by melting sand with soda and lime", "d09", "train"),
    "q5": ("who carries pollen to the hive", "a honey bee", "d02", "dev"),
    "q6": ("how does a clock keep time", "with a weight that swings", "d06", "dev"),
    "q7": ("why does a compass needle turn to the north", "the earth is a magnet", "d11", "test"),
    "q8": ("which bird hunts at night", "an owl", "d10", "test"),
}
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]


def build_tokenizer(*, wrap: bool, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the tiny collection.

    Args:
        wrap: put `<s>` and `</s>` around each text, as an encoder's tokenizer does; a causal model's adds nothing.
        vocab_size: number of tokens at most.
    """
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for document in DOCUMENTS.values() for text in document]
    texts += [text for query in QUERIES.values() for text in query[:2]]
    tokenizer.train_from_iterator(texts, trainer)
    if wrap:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )


def save_llm(folder: Path, *, hidden_size: int = 32, vocab_size: int = 512) -> None:
    """Save a random two-layer Llama with four query heads on two key heads, and its tokenizer."""
    tokenizer = build_tokenizer(wrap=False, vocab_size=vocab_size)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_encoder(folder: Path, *, parts: Path, hidden_size: int = 32, vocab_size: int = 512) -> None:
    """Save a random two-layer BERT with mean pooling as a Sentence-Transformers folder, and the BERT in `parts`."""
    tokenizer = build_tokenizer(wrap=True, vocab_size=vocab_size)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    transformer = Transformer(str(parts), max_seq_length=64)
    pooling = Pooling(hidden_size, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(folder))


def write_collection(folder: Path) -> None:
    """Write a BEIR folder: 12 documents, 8 queries with answers, qrels of 4 train, 2 dev and 2 test queries."""
    write_jsonl(
        folder / "corpus.jsonl",
        ({"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()),
    )
    write_jsonl(
        folder / "queries.jsonl",
        ({"_id": key, "text": text, "answer": answer} for key, (text, answer, _, _) in QUERIES.items()),
    )
    (folder / "qrels").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{key}\t{gold}\t1\n" for key, (_, _, gold, part) in QUERIES.items() if part == split]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
