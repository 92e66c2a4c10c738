"""The search page in a real browser, driven by the keyboard alone."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="the extra [app] is not installed")
pytest.importorskip("selenium", reason="the extra [browser] is not installed")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from nlt_trainer.arguments.stages import APP_BLOCKS
from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.report import serving
from nlt_trainer.text_files import write_jsonl

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
).split()
HOSTILE = "<script>document.title = 'taken over'</script> ${1 + 1} {{query}}"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Chromium with a profile of its own that records every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that this process connects to."""
    hosts: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            hosts.append(str(address[0]))
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return hosts


def requested_hosts(browser: webdriver.Chrome) -> set[str]:
    """Hosts that the browser has asked for something, also in vain; its own new tab is no host."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [urlsplit(e["params"]["request"]["url"]) for e in events if e["method"] == "Network.requestWillBeSent"]
    return {str(url.hostname) for url in urls if url.scheme in ("http", "https", "ws", "wss")}


def test_a_person_compares_two_encoders_by_keyboard(
    browser: webdriver.Chrome,
    connected: list[str],
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    tiny_collection_folder: Path,
    tmp_path: Path,
) -> None:
    """Reference: two tables of the documents, gains in every row, texts that stay texts, and 127.0.0.1 alone."""
    write_jsonl(
        tiny_collection_folder / "corpus.jsonl",
        ({"_id": f"d{n}", "title": "", "text": f"document {n} {HOSTILE}"} for n in range(4)),
    )
    folders = {"encoder": tiny_encoder_folder, "against": tiny_encoder_folder, "llm": tiny_llm_folder}
    folders |= {"corpus": tiny_collection_folder, "embeddings": tmp_path / "embeddings"}
    words = [word for key, value in folders.items() for word in (f"--{key}", str(value))]
    (args,) = parse_recipe(APP_BLOCKS, [*words, "--top_k", "3", "--title", "Two encoders"])
    address = serving.serve(args)
    assert urlsplit(address).hostname == "127.0.0.1"

    browser.get(address)
    wait = WebDriverWait(browser, 30)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "textarea, input[type=text]"))
    wait.until(lambda b: b.switch_to.active_element.tag_name in ("textarea", "input"))  # it has the focus
    type_keys(browser, "document", Keys.ENTER)
    wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, ".nlt-results table")) == 2)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".nlt-results tbody tr")) == 6
    assert "Searched 4 documents." in browser.find_element(By.ID, "note").text
    assert HOSTILE in browser.find_element(By.CSS_SELECTOR, ".nlt-results .document").text
    assert browser.title == "Two encoders"

    type_keys(browser, Keys.TAB, Keys.TAB, Keys.ENTER)
    assert browser.switch_to.active_element.text == "Ask the LLM"
    wait.until(lambda b: "has read" in b.find_element(By.ID, "note").text)
    gains = [row.text for row in browser.find_elements(By.CSS_SELECTOR, ".nlt-results tbody td:last-child")]
    assert len(gains) == 6
    assert all(gain[0] in "+-" for gain in gains)
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert requested_hosts(browser) == {"127.0.0.1"}
    assert set(connected) <= {"127.0.0.1", "::1", "localhost"}


def test_a_port_that_is_taken_is_named(
    tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: a socket that listens there."""
    folders = {"encoder": tiny_encoder_folder, "corpus": tiny_collection_folder, "embeddings": tmp_path}
    words = [word for key, value in folders.items() for word in (f"--{key}", str(value))]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (args,) = parse_recipe(APP_BLOCKS, [*words, "--port", str(port)])
        with pytest.raises(NLTError, match=rf"cannot be served at 127.0.0.1:{port} .*; name another port or host"):
            serving.serve(args)


def type_keys(browser: webdriver.Chrome, *keys: str) -> None:
    """Press keys wherever the focus is."""
    webdriver.ActionChains(browser).send_keys(*keys).perform()
