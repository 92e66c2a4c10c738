"""A web page that shows what two encoders find for a query, and what a frozen LLM gains from each document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nlt_trainer.errors import NLTError
from nlt_trainer.report.search_page import SearchPage

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'self'"
)
"""Content security policy: the page loads nothing from another host. Gradio's own pages need inline scripts."""

SESSIONS = 256
"""Open pages of which the server remembers the query, at 35 kB each. The page that was used longest ago searches again
before its reader can ask the LLM."""

GAIN_NOTE = (
    "**LLM gain**: how much likelier the frozen LLM finds your query after reading the document, in nats per token of "
    "the query; below 0 the document misleads it."
)


class LocalOnly:
    """Tells the browser, with each page, to load nothing from another host.

    Args:
        app: the application whose answers get the header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_app(page: SearchPage, *, title: str) -> gr.Blocks:
    """Build the page: a query, a button to search, a button that asks the LLM, a note and the results."""
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as app:
        gr.Markdown(f"# {title}")
        with gr.Row(equal_height=True):
            query = gr.Textbox(label="Query", placeholder="Type and press Enter", autofocus=True, scale=4)
            search = gr.Button("Search", variant="primary", scale=1, min_width=120)
            ask = gr.Button("Ask the LLM", scale=1, min_width=120)
        note = gr.Markdown("", elem_id="note")
        results = gr.HTML("", elem_id="results", apply_default_css=False)
        gr.Markdown(GAIN_NOTE)
        shown = gr.State("")
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        gr.on([query.submit, search.click], page.results, query, [shown, results, note], **hidden)
        ask.click(page.gains, shown, [results, note], **hidden)
    return app


def launch(app: gr.Blocks, *, host: str, port: int | None) -> str:
    """Serve the page in threads that end with the process; returns its address.

    Args:
        app: what `build_app` returned.
        host: address to listen on; `127.0.0.1` is reached from this machine alone.
        port: port to listen on; `None` takes a free one from 7860 on.

    Raises:
        NLTError: another program listens there, or this machine has no such address.
    """
    system = gr.themes.Default(
        font=[gr.themes.Font(name) for name in ("system-ui", "sans-serif")],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "monospace")],
    )
    try:
        _, address, _ = app.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            state_session_capacity=SESSIONS,
            ssr_mode=False,
            theme=system,
            css_paths=Path(__file__).parent / "templates" / "app.css",
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )
    except OSError as error:
        place = host if port is None else f"{host}:{port}"
        raise NLTError(f"the page cannot be served at {place} ({error}); name another port or host") from error
    return str(address)
