"""What belongs to a model: whatever changes what it makes of a text, and nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import TaskType
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from transformers import EsmTokenizer

from nlt_trainer.content import content_hash, encoder_content, model_content
from nlt_trainer.encoder.lora import lora_config
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.text_files import read_json, write_json

TEXTS = ["The Blue Whale", "a bee and its flowers", "tea", "the moon pulls the sea and so makes the tides " * 9]


def test_the_content_hash_sees_weights_and_configuration_only(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: a copy is the same model, a changed weight is another, a README changes nothing."""
    copy = shutil.copytree(tiny_llm_folder, tmp_path / "copy")
    (copy / "README.md").write_text("a model")
    assert content_hash(copy) == content_hash(tiny_llm_folder)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    assert content_hash(copy) != content_hash(tiny_llm_folder)


def test_the_content_hash_of_a_plain_folder_stays_what_it_was(tmp_path: Path) -> None:
    """Reference: the hash by hand over the names and contents of the folder's own files; gains are kept under it."""
    files = {"config.json": b"{}", "model.safetensors": b"w", "tokenizer.model": b"t"}
    total = hashlib.blake2b(digest_size=8)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        total.update(name.encode() + hashlib.blake2b(content).digest())
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"x")
    assert content_hash(tmp_path) == total.hexdigest()


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("vocab.txt", True),
        ("merges.txt", True),
        ("chat_template.jinja", True),
        ("additional_chat_templates/tools.jinja", True),
        ("special_tokens_map.json", True),
        ("model-00002-of-00002.safetensors", True),
        ("adapter_config.json", True),
        ("1_Pooling/config.json", True),
        ("README.md", False),
        ("recipe.yaml", False),
        ("record.json", False),
        ("trained_queries.json", False),
        ("trainer_state.json", False),
        ("training_args.bin", False),
        ("optimizer.pt", False),
        ("rng_state.pth", False),
        ("checkpoint_files.json", False),
        ("checkpoint-5/config.json", False),
        ("mteb/SciFact.json", False),
        ("1_Pooling/.cache/config.json", False),
        (".cache/config.json", False),
    ],
)
def test_which_files_belong_to_a_model(name: str, belongs: bool, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: by hand; a file that belongs counts when it comes, and when it changes."""
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    hashes = [content_hash(copy)]
    for content in ("one", "another"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(content)
        hashes.append(content_hash(copy))
    assert len(set(hashes)) == (3 if belongs else 1)


def test_a_malformed_list_of_modules_is_named(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the message."""
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    (copy / "modules.json").write_text('["1_Pooling"]')
    with pytest.raises(DataError, match=r"modules.json: is no list of modules"):
        content_hash(copy)


def test_a_module_in_a_linked_folder_belongs_to_the_model(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the hash of the same files in one folder; a link back to the model is no way without an end."""
    whole, linked = tmp_path / "whole", tmp_path / "linked"
    shutil.copytree(tiny_encoder_folder, whole)
    shutil.copytree(tiny_encoder_folder, linked)
    (linked / "1_Pooling").rename(tmp_path / "elsewhere")
    (linked / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    (linked / "1_Pooling" / "back").symlink_to(linked)
    (linked / "another").mkdir()
    (linked / "another" / "module").symlink_to(tmp_path / "elsewhere")
    assert content_hash(linked) == content_hash(whole)
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    assert content_hash(linked) != content_hash(whole)


def test_the_modules_of_a_router_belong_to_it(tmp_path: Path) -> None:
    """Reference: a changed weight of the module for documents, whose folder `modules.json` does not name."""
    sides = [StaticEmbedding(Tokenizer(WordLevel({"a": 0, "b": 1}, "a")), embedding_dim=4) for _ in range(2)]
    encoder = SentenceTransformer(modules=[Router.for_query_document([sides[0]], [sides[1]])], device="cpu")
    folders, in_memory = [tmp_path / "before", tmp_path / "after"], []
    for folder in folders:
        encoder.save_pretrained(str(folder))
        in_memory.append(encoder_content(encoder))
        sides[1].embedding.weight.data[0] += 1
    assert in_memory[0] != in_memory[1]
    assert content_hash(folders[0]) != content_hash(folders[1])


def test_an_adapter_is_known_by_its_base_too(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the base's content in the adapter's; a base that is gone is named."""
    base, adapter = shutil.copytree(tiny_encoder_folder, tmp_path / "base"), tmp_path / "adapter"
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(base)})
    assert model_content(str(adapter)) == f"{content_hash(adapter)} on {model_content(str(base))}"
    shutil.rmtree(base)
    with pytest.raises(NLTError, match="base does not exist"):
        model_content(str(adapter))


def loaded(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def embedded(encoder: SentenceTransformer) -> np.ndarray:
    """Of `TEXTS`, of different lengths, the last of them longer than the encoder reads."""
    return encoder.encode_document(TEXTS, convert_to_tensor=True).float().numpy()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"layer_norm_eps": 0.1}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer_config.json", {"model_max_length": 8}),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}),
        ("config_sentence_transformers.json", {"prompts": {"query": "", "document": "text: "}}),
    ],
)
def test_a_changed_file_of_an_encoder_is_another_encoder(
    file: str, change: dict[str, Any], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Reference: the embeddings, which move; the copy is the same encoder, on disk and in memory, until then."""
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    before, same = loaded(tiny_encoder_folder), loaded(copy)
    assert content_hash(copy) == content_hash(tiny_encoder_folder)
    assert encoder_content(same) == encoder_content(before)
    write_json(copy / file, read_json(copy / file) | change)
    after = loaded(copy)
    assert np.abs(embedded(after) - embedded(before)).max() > 1e-5
    assert content_hash(copy) != content_hash(tiny_encoder_folder)
    assert encoder_content(after) != encoder_content(before)


def change_weight(encoder: Any) -> None:
    next(encoder.parameters()).data *= 2


def change_dtype(encoder: Any) -> None:
    encoder.to(torch.bfloat16)


def change_length(encoder: Any) -> None:
    encoder.max_seq_length = 5


def change_dimensions(encoder: Any) -> None:
    encoder.truncate_dim = 8


def change_prompt(encoder: Any) -> None:
    encoder.prompts = {"query": "", "document": "text: "}


def change_truncation(encoder: Any) -> None:
    encoder.tokenizer.truncation_side = "left"


def change_padding(encoder: Any) -> None:
    encoder.tokenizer.padding_side = "left"


def change_normalizer(encoder: Any) -> None:
    encoder.tokenizer.backend_tokenizer.normalizer = Lowercase()


def change_pooling(encoder: Any) -> None:
    encoder[1] = Pooling(32, pooling_mode="max")


def add_activation(encoder: Any) -> None:
    encoder.append(Dense(32, 32, bias=False, init_weight=torch.eye(32), activation_function=torch.nn.Tanh()))


def add_other_activation(encoder: Any) -> None:
    encoder.append(Dense(32, 32, bias=False, init_weight=torch.eye(32), activation_function=torch.nn.ReLU()))


CHANGES = (
    change_weight, change_dtype, change_length, change_dimensions, change_prompt, change_truncation, change_padding,
    change_normalizer, change_pooling, add_activation, add_other_activation,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_memory_is_another_encoder(change: Callable[[Any], None], tiny_encoder_folder: Path) -> None:
    """Reference: the embeddings, which move."""
    before, after = loaded(tiny_encoder_folder), loaded(tiny_encoder_folder)
    change(after)
    first, second = embedded(before), embedded(after)
    assert first.shape != second.shape or np.abs(first - second).max() > 1e-5
    assert encoder_content(after) != encoder_content(before)


def test_no_two_changes_are_the_same(tiny_encoder_folder: Path) -> None:
    """Reference: as many encoders as changes."""
    found = set()
    for change in CHANGES:
        encoder = loaded(tiny_encoder_folder)
        change(encoder)
        found.add(encoder_content(encoder))
    assert len(found) == len(CHANGES)


def test_an_adapters_scaling_belongs_to_an_encoder(tiny_encoder_folder: Path) -> None:
    """Reference: the embeddings by the same adapter weights with another alpha, which no tensor holds."""
    found = []
    for alpha in (8, 32):
        encoder = loaded(tiny_encoder_folder)
        torch.manual_seed(0)
        options = {"r": 4, "lora_alpha": alpha, "init_lora_weights": False, "target_modules": ["query"]}
        encoder.add_adapter(lora_config(TaskType.FEATURE_EXTRACTION, options))
        found.append((embedded(encoder), encoder_content(encoder)))
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-5
    assert found[0][1] != found[1][1]


def test_what_changes_no_embedding_is_no_part_of_an_encoder(tiny_encoder_folder: Path) -> None:
    """Reference: the embeddings; that it was used leaves traces in its tokenizer."""
    encoder = loaded(tiny_encoder_folder)
    before, embeddings = encoder_content(encoder), embedded(encoder)
    encoder.similarity_fn_name = "dot"
    encoder.model_card_data.model_name = "another"
    encoder.train()
    np.testing.assert_array_equal(embedded(encoder), embeddings)
    assert encoder_content(encoder) == before


def test_a_table_of_token_embeddings_truncates_as_its_tokenizer_says(
    tiny_static_encoder: SentenceTransformer,
) -> None:
    """Reference: the embeddings; the tokenizer is of another class than a transformer's."""
    before, embeddings = encoder_content(tiny_static_encoder), embedded(tiny_static_encoder)
    assert encoder_content(tiny_static_encoder) == before
    tiny_static_encoder.tokenizer.enable_truncation(4)
    assert np.abs(embedded(tiny_static_encoder) - embeddings).max() > 1e-5
    assert encoder_content(tiny_static_encoder) != before


def test_a_tokenizer_without_a_backend_has_its_vocabulary(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: two vocabularies of the same tokens in another order."""
    found = []
    for number, words in enumerate((["the", "tea"], ["tea", "the"])):
        path = tmp_path / f"{number}.txt"
        path.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *words]))
        encoder = loaded(tiny_encoder_folder)
        transformer: Any = encoder[0]
        transformer.processor = EsmTokenizer(str(path), model_max_length=64)
        found.append((embedded(encoder), encoder_content(encoder), encoder_content(encoder)))
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-5
    assert found[0][1] == found[0][2] != found[1][1]


def test_a_table_of_word_vectors_has_its_words(tmp_path: Path) -> None:
    """Reference: the embeddings of words in another order, and of another stop word; another process, by hash seed."""
    found = []
    for words, stop in ((["the", "tea"], ["a"]), (["tea", "the"], ["a"]), (["the", "tea"], ["the"])):
        vectors = np.arange(8.0, dtype=np.float32).reshape(2, 4) + 1
        table = WordEmbeddings(WhitespaceTokenizer(words, stop_words={*stop, *"bcdefgh"}), vectors)
        encoder = SentenceTransformer(modules=[table, Pooling(4)], device="cpu")
        found.append((encoder.encode("the tea the").tolist(), encoder_content(encoder)))
    assert len({str(embedding) for embedding, _ in found}) == len({content for _, content in found}) == 3
    encoder.save_pretrained(str(tmp_path / "words"))
    code = (
        "import sys; from sentence_transformers import SentenceTransformer as S; "
        "from nlt_trainer.content import encoder_content; print(encoder_content(S(sys.argv[1], device='cpu')))"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / "words")]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip() == found[-1][1]
