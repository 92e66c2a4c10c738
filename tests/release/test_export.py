"""Forms of an encoder, and the gate that compares each with the encoder as it was in the trainer."""

from __future__ import annotations

import errno
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from nlt_trainer.choices import ExportForm
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.probes import TEXTS, Probe, difference, probe
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import LEFT, RECORD_FILE
from nlt_trainer.release import licences
from nlt_trainer.release.export import export, save_trained
from nlt_trainer.release.licences import data_licence, model_licence
from nlt_trainer.run.folder import Run
from nlt_trainer.text_files import write_json

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
PROMPTS = {"query": "query: ", "document": "passage: "}


def trained(llm: Path, *, lora: bool = True) -> SentenceTransformer:
    """A decoder with last-token pooling, prompts and an adapter that is not that of the start."""
    torch.manual_seed(1)
    encoder = load_encoder(
        str(llm), pooling="lasttoken", lora=LORA if lora else None, prompts=PROMPTS, max_seq_length=64, device="cpu"
    )
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return encoder


@pytest.fixture
def run(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    """A run with an adapter, saved merged and alone."""
    save_trained(Run(tmp_path / "run"), trained(tiny_llm_folder), merge=True, keep_adapter=True)
    write_json(tmp_path / "run" / "settings.json", {"model": {"lora": LORA}, "data": {}, "trainer": {}})
    return tmp_path / "run"


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_each_form_equals_the_encoder_in_the_trainer(run: Path, tiny_llm_folder: Path, form: ExportForm) -> None:
    """Reference: embeddings of the encoder with its adapter, in the trainer's hands; the start's are others."""
    folder, equal = export(Run(run), form)
    assert equal == ["SentenceTransformer", *(["adapter merged"] if form == "adapter" else []), "mteb"]
    assert (folder / "adapter_model.safetensors").exists() == (form == "adapter")
    expected, found = trained(tiny_llm_folder), SentenceTransformer(str(folder), device="cpu")
    start = trained(tiny_llm_folder, lora=False).encode_query(list(TEXTS))
    for name in ("encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(found, name)(list(TEXTS)), getattr(expected, name)(list(TEXTS)), atol=1e-5)
    assert np.abs(found.encode_query(list(TEXTS)) - start).max() > 1e-2


def test_a_run_that_saved_its_adapter_is_merged_on_export(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: the embeddings that it had."""
    save_trained(Run(tmp_path), trained(tiny_llm_folder), merge=False, keep_adapter=True)
    assert export(Run(tmp_path), "adapter")[0] == tmp_path / "encoder"
    folder, _ = export(Run(tmp_path), "merged")
    assert folder == tmp_path / "merged"
    assert not list(folder.glob("adapter*"))
    found = SentenceTransformer(str(folder), device="cpu").encode_query(list(TEXTS))
    np.testing.assert_allclose(found, trained(tiny_llm_folder).encode_query(list(TEXTS)), atol=1e-5)


def test_an_encoder_without_a_transformer_passes(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: its own embeddings."""
    tiny_static_encoder.prompts = {**PROMPTS}
    save_trained(Run(tmp_path), tiny_static_encoder, merge=True, keep_adapter=False)
    assert export(Run(tmp_path), "merged") == (tmp_path / "encoder", ["SentenceTransformer", "mteb"])


def spoil_weight(folder: Path) -> None:
    """Change one weight in the middle of the second layer by a hundredth."""
    weights = load_file(folder / "model.safetensors")
    weights["layers.1.self_attn.v_proj.weight"][0] += 1e-2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_prompt(folder: Path) -> None:
    """Drop the query's prompt, as a converter that knows other keys does."""
    path = folder / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace('"query: "', '""'))


def spoil_document_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace('"passage: "', '""'))


def spoil_pooling(folder: Path) -> None:
    """Pool by the mean."""
    path = folder / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("lasttoken", "mean"))


@pytest.mark.parametrize(
    ("spoil", "layer"),
    [
        (spoil_weight, r"the first layer that differs is 0.model.layers.1.self_attn.v_proj"),
        (spoil_prompt, r"already the tokens of a query do \(prompt, tokenizer or max_seq_length\)"),
        (spoil_document_prompt, r"each layer agrees on the first query: a document's prompt"),
        (spoil_pooling, r"the first layer that differs is 1"),
    ],
)
def test_the_gate_names_the_first_layer_that_differs(run: Path, spoil: object, layer: str) -> None:
    """Reference: what was changed in the folder, by a program that has left no hashes of files."""
    assert callable(spoil)
    spoil(run / "encoder")
    (run / "encoder" / RECORD_FILE).unlink()
    with pytest.raises(
        NLTError,
        match=rf'SentenceTransformer\(".*encoder"\) is not the encoder .*: .*differ.* {layer}.* Nothing is pub',
    ):
        export(Run(run), "merged")


def test_an_adapter_that_is_loaded_as_its_base_is_found(run: Path, tiny_llm_folder: Path) -> None:
    """Reference: the first of its layers that the adapter changes."""
    trained(tiny_llm_folder, lora=False).save_pretrained(str(run / "encoder"))
    (run / "encoder" / RECORD_FILE).unlink()
    with pytest.raises(NLTError, match=r"the first layer that differs is 0.model.layers.0.self_attn.q_proj"):
        export(Run(run), "merged")


@pytest.mark.parametrize(("form", "folder"), [("merged", "encoder"), ("adapter", "adapter")])
@pytest.mark.parametrize("merge", [True, False])
def test_a_file_that_a_disk_has_changed_is_not_exported(
    tiny_llm_folder: Path, tmp_path: Path, form: ExportForm, folder: str, merge: bool
) -> None:
    """Reference: the file in the message. One bit of a weight changes no embedding of the probe by 1e-5."""
    run = Run(tmp_path / "run")
    save_trained(run, trained(tiny_llm_folder), merge=merge, keep_adapter=True)
    damaged = next((run.folder / (folder if merge else "encoder")).glob("*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-4] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=rf"{damaged.name}: is not as it was saved.* copy the folder again"):
        export(run, form)
    assert not (run.folder / "merged").exists()


def test_mteb_is_asked_with_its_own_prompts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: a version of mteb that knows no prompt by this name."""
    monkeypatch.setattr("mteb.models.sentence_transformer_wrapper.get_prompt_name", lambda *_: None)
    monkeypatch.setattr(
        "mteb.models.sentence_transformer_wrapper._select_encode_function", lambda model, *_, **__: model.encode
    )
    with pytest.raises(NLTError, match=r'mteb with ".*" is not the encoder .* already the tokens of a query do'):
        export(Run(run), "merged")


def test_a_probe_is_read_as_it_was_written(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the probe; layers stand in the order of the computation."""
    made = probe(tiny_encoder)
    made.save(tmp_path / "probe.safetensors")
    found = Probe.load(tmp_path / "probe.safetensors")
    assert list(found.layers) == list(made.layers)
    assert list(found.layers)[:2] == ["tokens", "0.model.embeddings.word_embeddings"]
    assert list(found.layers)[-1] == "1"
    assert difference(found, made) is None
    nan = Probe(found.query * torch.nan, found.document, found.layers)
    assert "differ by up to inf" in str(difference(nan, made))
    short = Probe(found.query[:, :8], found.document, found.layers)
    assert difference(short, made) == "query embeddings have 8 numbers instead of 32"
    with pytest.raises(DataError, match=r"none.safetensors: file not found; `nlt train` writes it: train again"):
        Probe.load(tmp_path / "none.safetensors")


def test_a_probe_that_cannot_be_written_leaves_the_one_before(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the file before, alone in its folder; what is being written has a name that `sweep` knows."""
    made, path = probe(tiny_encoder), tmp_path / "probe.safetensors"
    made.save(path)
    before, names = path.read_bytes(), list[str]()

    def full(handle: int) -> None:
        names.extend(other.name for other in tmp_path.iterdir() if other != path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Probe(made.document, made.query, {}).save(path)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == before
    assert len(names) == 1 and LEFT.fullmatch(names[0])


def test_what_cannot_be_exported_is_named(
    run: Path, tiny_static_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the messages."""
    save_trained(Run(tmp_path / "plain"), tiny_static_encoder, merge=True, keep_adapter=False)
    settings = tmp_path / "plain" / "settings.json"
    write_json(settings, {"model": {"lora": None}, "data": {}, "trainer": {}})
    with pytest.raises(NLTError, match=r"plain has no adapter to export: it was trained without lora"):
        export(Run(tmp_path / "plain"), "adapter")
    write_json(settings, {"model": {"lora": LORA}, "data": {}, "trainer": {}})
    with pytest.raises(
        NLTError, match=r"would name its base without the revision or the adapter under it; export merg"
    ):
        export(Run(tmp_path / "plain"), "adapter")
    with pytest.raises(NLTError, match=r"form 'gguf' is unknown; choose one of merged, adapter, onnx, openvino"):
        export(Run(run), "gguf")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(NLTError, match=r"none has no finished encoder; run `nlt train` with this recipe first"):
        export(Run(tmp_path / "none"), "merged")
    monkeypatch.setattr("nlt_trainer.release.export._installed", lambda package: False)
    for form in ("onnx", "openvino"):
        with pytest.raises(
            NLTError, match=rf"form {form} needs the extra sentence-transformers\[{form}\], .*pip install"
        ):
            export(Run(run), form)


@pytest.mark.parametrize("form", ["merged", "onnx"])
def test_a_folder_that_is_not_replaced_is_refused_before_the_work(
    form: ExportForm, tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the folder's own file; nothing is loaded."""
    save_trained(Run(tmp_path), trained(tiny_llm_folder), merge=False, keep_adapter=False)
    (tmp_path / form).mkdir()
    (tmp_path / form / "mine.txt").touch()
    monkeypatch.setattr("nlt_trainer.release.export.loading", lambda *_: pytest.fail("loaded"))
    with pytest.raises(NLTError, match=rf"{form} is there already and was not written by nlt"):
        export(Run(tmp_path), form)


def test_what_cannot_be_read_is_named(run: Path, tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: the adapter's base that has moved, and half a file of weights without a hash and of the probe."""
    base = tiny_llm_folder.rename(tmp_path / "moved")
    with pytest.raises(NLTError, match=r"encoder '.*adapter' cannot be loaded: "):
        export(Run(run), "adapter")
    base.rename(tiny_llm_folder)
    (run / "encoder" / RECORD_FILE).unlink()
    for path, message in (
        (run / "encoder" / "model.safetensors", r"encoder '.*encoder' cannot be loaded: "),
        (run / "probe.safetensors", r"probe.safetensors: cannot be read .*train again"),
    ):
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(NLTError, match=message):
            export(Run(run), "merged")


def test_weights_that_are_not_finite_are_not_saved(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the name of the weight."""
    weight = tiny_encoder.get_parameter("0.model.encoder.layer.1.output.dense.bias")
    weight.data[3] = torch.nan
    with pytest.raises(NLTError, match=r"0.model.encoder.layer.1.output.dense.bias infinite or NaN, nothing is saved"):
        save_trained(Run(tmp_path), tiny_encoder, merge=True, keep_adapter=False)
    assert list(tmp_path.iterdir()) == []


def card(folder: Path, metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    RepoCard(f"---\n{metadata}\n---\n").save(folder / "README.md")
    return folder


def test_licences_are_what_cards_on_this_machine_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the cards; of a model in a package its distribution's metadata, of a Hub id the card in the cache."""
    assert model_licence(str(card(tmp_path / "a", "license: mit"))) == "mit"
    assert model_licence(str(card(tmp_path / "b", "license: other\nlicense_name: llama3.2"))) == "llama3.2"
    assert model_licence(str(card(tmp_path / "c", "tags: [x]"))) is None
    assert model_licence(str(card(tmp_path / "number", "license: 3"))) == "3"
    assert model_licence(str(tmp_path / "gone")) is None
    assert model_licence("package:pydantic/deprecated") == "MIT"
    cached = {("org/llm", "v2", "model"): "a", ("org/one", "c0", "dataset"): "b"}
    monkeypatch.setattr(
        licences,
        "try_to_load_from_cache",
        lambda repo, file, revision, repo_type: (
            str(tmp_path / cached[repo, revision, repo_type] / file) if (repo, revision, repo_type) in cached else None
        ),
    )
    assert (model_licence("org/llm", revision="v2"), model_licence("org/llm")) == ("mit", None)
    write_json(tmp_path / "data" / "source.json", {"commits": {"org/one": "c0", "org/two": "c1"}})
    assert data_licence(tmp_path / "data") == "org/one: llama3.2, org/two: not stated"
    assert data_licence(card(tmp_path / "data", "license: [mit, cc-by-4.0]")) == "mit, cc-by-4.0"
    assert data_licence(tmp_path / "none") is None


@pytest.mark.parametrize(
    "content", ["---\nText between rules.\n---\n", "---\na: b: c\n---\n", "---\na: " + "[" * 3000]
)
def test_a_readme_without_metadata_states_no_licence(content: str, tmp_path: Path) -> None:
    """Reference: no licence; the collection of a training may have any README of its owner's."""
    (tmp_path / "README.md").write_text(f"{content}\n---\n")
    assert model_licence(str(tmp_path)) is None
    assert data_licence(tmp_path) is None


@pytest.mark.parametrize("stated", ["apache-2.0", None])
def test_the_licence_of_a_gguf_file_is_read_without_its_vocabulary(tmp_path: Path, stated: str | None) -> None:
    """Reference: a file that ends inside its vocabulary, which only a reader that goes on would miss."""
    path = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if stated:
        writer.add_license(stated)
    writer.add_token_list(["a", "b", "c"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert model_licence(str(path)) == stated
    if stated:
        path.write_bytes(path.read_bytes()[:-20])
        assert model_licence(str(path)) == stated
