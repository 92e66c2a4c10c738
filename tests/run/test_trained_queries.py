"""Which queries an encoder was trained on, by its folder or by its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlt_trainer.data.known_queries import write_query_keys
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import TRAINED_QUERIES_FILE
from nlt_trainer.run.folder import Run
from nlt_trainer.run.trained_queries import trained_queries_of
from nlt_trainer.text_files import write_json


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run on three queries, with the folders that encoders lie in and one that is none of the run's."""
    run = Run(tmp_path / "run")
    for name in ("encoder", "merged", "onnx", "checkpoint-4", "other"):
        (run.folder / name).mkdir(parents=True)
    write_query_keys(run.trained_queries_file, [7, 3, 5, 3])
    return run


def test_the_keys_of_a_run_are_those_of_its_encoders(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the keys of the run; nothing is known of another folder in it, nor of a model on the Hub."""
    for name in ("encoder", "merged", "onnx", "checkpoint-4"):
        assert trained_queries_of(str(run.folder / name)) == frozenset({3, 5, 7})
    monkeypatch.chdir(run.encoder)
    assert trained_queries_of(".") == frozenset({3, 5, 7})
    assert trained_queries_of(str(run.folder / "other")) is None
    assert trained_queries_of("org/name") is None
    run.trained_queries_file.unlink()  # an older version has trained
    assert trained_queries_of(str(run.encoder)) is None
    with pytest.raises(NLTError, match=r"nothing does not exist"):
        trained_queries_of("./nothing")


def test_the_keys_beside_an_encoder_come_first(run: Run) -> None:
    """Reference: the keys in its own folder, wherever that lies; a damaged file is named."""
    for folder in (run.encoder, run.folder / "other"):
        write_query_keys(folder / TRAINED_QUERIES_FILE, [1])
        assert trained_queries_of(str(folder)) == frozenset({1})
    (run.encoder / TRAINED_QUERIES_FILE).write_text('["a"]')
    with pytest.raises(DataError, match=r"encoder/trained_queries.json: is no list of keys of queries"):
        trained_queries_of(str(run.encoder))


def test_a_start_that_was_kept_was_not_trained_on_the_queries_of_its_run(run: Run, tmp_path: Path) -> None:
    """Reference: the keys of the start, as long as it is there; the checkpoint is what was trained."""
    start = tmp_path / "start"
    write_json(run.decision_file, {"kept": "start"})
    write_json(run.settings_file, {"model": {"encoder": str(start)}, "data": {}, "trainer": {}})
    assert trained_queries_of(str(run.encoder)) is None
    start.mkdir()
    assert trained_queries_of(str(run.encoder)) is None
    write_query_keys(start / TRAINED_QUERIES_FILE, [2])
    assert trained_queries_of(str(run.encoder)) == trained_queries_of(str(run.folder / "merged")) == frozenset({2})
    assert trained_queries_of(str(run.folder / "checkpoint-4")) == frozenset({3, 5, 7})
