"""Read a Word file as sections under its headings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import regex
from docx import Document
from docx.oxml.ns import qn
from docx.table import Table, _Cell
from docx.text.paragraph import Paragraph
from lxml import etree

from nlt_trainer.documents.sections import Section, Source

HEADING_STYLE = regex.compile(r"(?:Heading (\d)|Title)")
"""Name of a style in Word that makes a paragraph a heading; the name is the same in every language of Word."""
LEFT_OUT = ("w:del", "w:moveFrom")
"""Elements that hold what was deleted, or stands elsewhere now."""
UNWRITTEN = ".//w:sdt[w:sdtPr/w:showingPlcHdr or w:sdtPr/w:docPartObj]"
"""Fields of a form that say only what belongs there, and what Word makes itself, such as a table of contents."""
WRAPPERS = ("w:ins", "w:moveTo", "w:sdt", "w:sdtContent", "w:smartTag", "w:fldSimple", "w:customXml")
"""Elements around text that python-docx reads only where it stands outside of them: insertions, forms and fields."""


def word_source(path: Path) -> Source:
    """Return the paragraphs and tables of a Word file, with all tracked changes accepted.

    Raises:
        docx.exceptions.PythonDocxError, zipfile.BadZipFile: the file is damaged.
    """
    document = Document(str(path))
    body = document.element.body
    etree.strip_elements(body, *map(qn, LEFT_OUT), with_tail=False)
    for element in body.xpath(UNWRITTEN):
        element.getparent().remove(element)
    etree.strip_tags(body, *map(qn, WRAPPERS))
    title = document.core_properties.title
    headings: dict[int, str] = {}
    sections: list[Section] = []
    lines: list[str] = []

    def close() -> None:
        sections.append(Section(tuple(headings[level] for level in sorted(headings)), "\n\n".join(lines)))
        lines.clear()

    for block in document.iter_inner_content():
        style = None if isinstance(block, Table) else HEADING_STYLE.fullmatch(_style(block))
        if isinstance(block, Table) or not style or not block.text.strip():
            lines += _lines([block])
            continue
        close()
        level = int(style[1] or 0)
        headings = {above: heading for above, heading in headings.items() if above < level} | {level: block.text}
        title = title or block.text
    close()
    return Source(title, sections)


def _style(paragraph: Paragraph) -> str:
    return (paragraph.style.name if paragraph.style else None) or ""


def _lines(blocks: Iterable[Paragraph | Table]) -> Iterator[str]:
    """Yield paragraphs and rows of tables; a cell that spans columns stands in its row once."""
    for block in blocks:
        if isinstance(block, Table):
            yield from (" | ".join(map(_text, dict.fromkeys(row.cells))) for row in block.rows)
        else:
            yield block.text


def _text(cell: _Cell) -> str:
    return "\n".join(_lines(cell.iter_inner_content())).strip()
