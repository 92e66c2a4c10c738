"""Fill the package's HTML templates. Every value that is put into them is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **context: Any) -> str:
    """Fill a template of `nlt_trainer/report/templates`; only `markupsafe.Markup` goes in as it is."""
    return _ENVIRONMENT.get_template(template).render(**context)
