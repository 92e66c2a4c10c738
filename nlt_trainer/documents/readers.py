"""A reader for each kind of file. None runs code or macros, resolves entities, or fetches what a file points to."""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import regex

from nlt_trainer.documents.encodings import clean, read_text
from nlt_trainer.documents.sections import Section, Source, markdown_source, rst_source
from nlt_trainer.documents.tables import BrokenLine, csv_rows, jsonl_rows, parquet_rows
from nlt_trainer.errors import NLTError

NO_CONTENT = ["title", "script", "style", "nav", "template", "noscript"]
"""Elements of a page that are not its content."""
PLAIN = ["a", "abbr", "b", "del", "em", "i", "img", "strong", "sub", "sup"]
"""Elements of which only the text is kept."""


def read_txt(path: Path) -> Iterator[Source]:
    """Yield the text of a file.

    Raises:
        NLTError: the file is binary; so do the readers of Markdown, reStructuredText and CSV.
    """
    yield Source("", [Section((), read_text(path))])


def read_markdown(path: Path) -> Iterator[Source]:
    """Yield Markdown as sections under its headings."""
    yield markdown_source(clean(read_text(path)))


def read_rst(path: Path) -> Iterator[Source]:
    """Yield reStructuredText as sections under its headings."""
    yield rst_source(clean(read_text(path)))


def read_html(path: Path) -> Iterator[Source]:
    """Yield the content of a page, without scripts, styles and navigation, as sections under its headings."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pages that look like XML
        soup = BeautifulSoup(path.read_bytes(), "lxml")
    heading = soup.select_one("title:not(svg title)")
    title = heading.get_text(" ", strip=True) if heading else ""
    for element in soup(NO_CONTENT):
        element.decompose()
    mains = [main for main in soup.select("main:not(main main)") if main.get_text(strip=True)]
    converter = MarkdownConverter(
        heading_style="ATX", strip=PLAIN, escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    text = "\n\n".join(map(converter.convert_soup, mains or [soup.body or soup]))
    yield markdown_source(clean(text), title=title)


def read_pdf(path: Path) -> Iterator[Source]:
    """Yield the text layer of a PDF; lines are joined to paragraphs.

    Raises:
        NLTError: the file is encrypted, or has no text layer.
        pypdf.errors.PyPdfError: the file is damaged.
    """
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every flaw that it can get over
    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise NLTError("encrypted; save it without a password")
    text = "\n\n".join(page.extract_text() for page in reader.pages)
    if not text.strip():
        raise NLTError("has no text layer; recognise the text of its pages first (OCR)")
    text = unicodedata.normalize("NFKC", clean(text))  # ligatures become letters
    text = regex.sub(r"(?<=\p{L})-\n(?=\p{Ll})", "", text)
    text = regex.sub(r"(?<!\n)\n(?!\n)", " ", text)
    title = reader.metadata.title if reader.metadata else None
    yield Source(title if isinstance(title, str) else "", [Section((), text)])


def read_docx(path: Path) -> Iterator[Source]:
    """Yield the paragraphs and tables of a Word file as sections under its headings.

    Raises:
        docx.exceptions.PythonDocxError, zipfile.BadZipFile: the file is damaged.
    """
    from nlt_trainer.documents.word_files import word_source

    yield word_source(path)


READERS: dict[str, Callable[[Path], Iterator[Source | BrokenLine]]] = {
    ".txt": read_txt,
    ".md": read_markdown,
    ".rst": read_rst,
    ".html": read_html,
    ".htm": read_html,
    ".csv": csv_rows,
    ".jsonl": jsonl_rows,
    ".parquet": parquet_rows,
    ".pdf": read_pdf,
    ".docx": read_docx,
}
"""Ending of a file's name in small letters -> its reader."""
