"""Read a Word file as sections under its headings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import regex
from docx import Document
from docx.document import Document as WordDocument
from docx.oxml.ns import nsmap, qn
from docx.oxml.parser import parse_xml
from docx.table import Table, _Cell
from docx.text.paragraph import Paragraph
from lxml import etree

from nlt_trainer.documents.sections import Section, Source

HEADING_STYLE = regex.compile(r"(?:Heading (\d)|Title)")
"""Name of a style in Word that makes a paragraph a heading; the name is the same in every language of Word."""
LEFT_OUT = ("w:del", "w:moveFrom")
"""Elements that hold what was deleted, or stands elsewhere now."""
UNWRITTEN = etree.XPath(".//w:sdt[w:sdtPr/w:showingPlcHdr or w:sdtPr/w:docPartObj]", namespaces=nsmap)
"""Fields of a form that say only what belongs there, and what Word makes itself, such as a table of contents."""
WRAPPERS = ("w:ins", "w:moveTo", "w:sdt", "w:sdtContent", "w:smartTag", "w:fldSimple", "w:customXml")
"""Elements around text that python-docx reads only where it stands outside of them: insertions, forms and fields."""
TEXT_BOX, NOTES = "w:txbxContent", ("footnote", "endnote")
"""Elements of text that stands beside its paragraph, or below the page or the whole text."""
Notes = Mapping[tuple[str, str | None], str]
"""Kind and number of a note -> its text."""


def word_source(path: Path) -> Source:
    """Return the paragraphs and tables of a Word file, with all tracked changes accepted.

    What stands in the text boxes of a paragraph, and its notes, follow it.

    Raises:
        docx.exceptions.PythonDocxError, zipfile.BadZipFile: the file is damaged.
    """
    document = Document(str(path))
    notes = _notes(document)
    _accept_changes(document.element.body)
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
            lines += _lines([block], notes)
            continue
        close()
        level = int(style[1] or 0)
        headings = {above: heading for above, heading in headings.items() if above < level} | {level: block.text}
        title = title or block.text
        lines += _asides(block, notes)
    close()
    return Source(title, sections)


def _accept_changes(root: Any) -> None:
    """Remove what was deleted or is no text of the author's, and the elements around the rest."""
    etree.strip_elements(root, *map(qn, LEFT_OUT), with_tail=False)
    for element in UNWRITTEN(root):
        element.getparent().remove(element)
    etree.strip_tags(root, *map(qn, WRAPPERS))


def _notes(document: WordDocument) -> Notes:
    """The footnotes and endnotes of a file."""
    found: dict[tuple[str, str | None], str] = {}
    for relation in document.part.rels.values():
        kind = relation.reltype.rpartition("/")[2].removesuffix("s")
        if kind in NOTES and not relation.is_external:
            root: Any = parse_xml(relation.target_part.blob)
            _accept_changes(root)
            for note in root:
                found[kind, note.get(qn("w:id"))] = "\n".join(_lines(_blocks(note, document), {})).strip()
    return found


def _style(paragraph: Paragraph) -> str:
    return (paragraph.style.name if paragraph.style else None) or ""


def _lines(blocks: Iterable[Paragraph | Table], notes: Notes) -> Iterator[str]:
    """Yield paragraphs and rows of tables; a cell that spans columns stands in its row once."""
    for block in blocks:
        if isinstance(block, Table):
            for row in block.rows:
                yield " | ".join(_text(cell, notes) for cell in dict.fromkeys(row.cells))
        else:
            yield block.text
            yield from _asides(block, notes)


def _asides(paragraph: Paragraph, notes: Notes) -> Iterator[str]:
    """Yield what stands in the text boxes of a paragraph, which Word writes twice, and its notes."""
    references = {qn(f"w:{kind}Reference"): kind for kind in NOTES}
    for element in paragraph._p.iter(qn(TEXT_BOX), *references):
        if kind := references.get(element.tag):
            yield notes.get((kind, element.get(qn("w:id"))), "")
        elif not any(etree.QName(above).localname == "Fallback" for above in element.iterancestors()):
            yield from _lines(_blocks(element, paragraph), notes)


def _blocks(element: Any, parent: Any) -> Iterator[Paragraph | Table]:
    """Yield the paragraphs and tables of an element that python-docx has no class for."""
    for child in element.iterchildren(qn("w:p"), qn("w:tbl")):
        yield Paragraph(child, parent) if child.tag == qn("w:p") else Table(child, parent)


def _text(cell: _Cell, notes: Notes) -> str:
    return "\n".join(_lines(cell.iter_inner_content(), notes)).strip()
