"""What the search page tells a browser, asked without one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

pytest.importorskip("gradio", reason="the extra [app] is not installed")

from nlt_trainer.arguments.stages import APP_BLOCKS
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.report import serving


def test_the_page_is_served_here_alone_and_loads_nothing_from_elsewhere(
    tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: the policy that a browser keeps to, in which every source is the page itself or stands in it."""
    folders = {"encoder": tiny_encoder_folder, "corpus": tiny_collection_folder, "embeddings": tmp_path}
    (args,) = parse_recipe(APP_BLOCKS, [word for key, value in folders.items() for word in (f"--{key}", str(value))])
    address = serving.serve(args)
    assert urlsplit(address).hostname == "127.0.0.1"
    for place in ("", "gradio_api/info", "nowhere"):
        policy = httpx2.get(f"{address}{place}").headers["content-security-policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'self'"
        assert {"script-src", "connect-src", "form-action", "base-uri"} <= set(rules)
        assert {source for rule in rules.values() for source in rule.split() if not source.startswith("'")} <= {
            "data:",
            "blob:",
        }
