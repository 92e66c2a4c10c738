"""Readers against files whose content is known; what is damaged raises, and nothing outside a file is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from document_files import OTHER, TEXT, encrypt_pdf, write_docx, write_pdf
from docx import Document
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from nlt_trainer.documents.readers import READERS, read_docx, read_html, read_pdf
from nlt_trainer.documents.sections import Source
from nlt_trainer.errors import NLTError


def plain(source: Source) -> list[tuple[tuple[str, ...], str]]:
    """Headings and text of the sections that have text."""
    return [(section.headings, section.text.strip()) for section in source.sections if section.text.strip()]


PAGE = """<!DOCTYPE html><html><head><title>Page</title><style>p {{ color: red }}</style></head><body>
<nav>menu</nav><script>run()</script><noscript>turn it on</noscript>
{heading}<p>Some <b>bold_text</b> with a
<a href="http://nowhere.invalid/a">link</a>.</p><img src="http://nowhere.invalid/a.png" alt="x">
<h2>Code</h2><pre># no heading
    indented</pre><table><tr><th>a</th></tr><tr><td>1</td></tr></table></body></html>"""


@pytest.mark.parametrize(("heading", "title"), [("<h1>First</h1>", "First"), ("", "Page")])
def test_a_page_is_its_content(heading: str, title: str, tmp_path: Path) -> None:
    """Reference: sections by hand. Scripts, styles and navigation are no content."""
    (tmp_path / "a.html").write_text(PAGE.format(heading=heading))
    (source,) = read_html(tmp_path / "a.html")
    assert isinstance(source, Source)
    assert source.title == title
    (above, prose), (below, code) = plain(source)
    assert (above, prose) == ((title,) if heading else (), "Some bold_text with a\nlink.")
    assert below == (*above, "Code")
    assert code.startswith("```\n# no heading\n    indented\n```\n\n| a |")


@pytest.mark.parametrize(
    ("body", "title", "text"),
    [
        ("<main><p>one</p></main><p>beside</p><main><p>two</p></main>", "", "one two"),
        ("<main></main><p>beside</p>", "", "beside"),
        ("<p>one</p><main> <nav>menu</nav></main>", "", "one"),
        ("<main><p>one</p><main><p>inner</p></main></main>", "", "one inner"),
        ("<svg><title>icon</title></svg><p>one</p>", "", "one"),
        ("<svg><title>icon</title></svg><title>Late</title><p>one</p>", "Late", "one"),
    ],
)
def test_no_main_part_of_a_page_is_lost(body: str, title: str, text: str, tmp_path: Path) -> None:
    """Reference: the words by hand. A main part without text is none, and a picture's title is not the page's."""
    (tmp_path / "a.html").write_text(f"<html><body>{body}</body></html>")
    (source,) = read_html(tmp_path / "a.html")
    assert isinstance(source, Source)
    assert (source.title, " ".join(source.sections[0].text.split())) == (title, text)


def test_a_page_resolves_no_entity(tmp_path: Path) -> None:
    """Reference: the content of the file that an entity points to is nowhere in the text, which goes on after it."""
    (tmp_path / "secret").write_text("HIDDEN")
    entity = f'<?xml version="1.0"?><!DOCTYPE html [<!ENTITY secret SYSTEM "file://{tmp_path / "secret"}">]>'
    (tmp_path / "a.html").write_text(f"{entity}<html><body><p>&secret; {TEXT}</p></body></html>")
    (source,) = read_html(tmp_path / "a.html")
    text = str(plain(source)) if isinstance(source, Source) else ""
    assert TEXT in text
    assert "HIDDEN" not in text


def test_a_page_says_its_encoding(tmp_path: Path) -> None:
    """Reference: the text; the bytes are those of the encoding that the page names."""
    page = '<html><head><meta charset="koi8-r"></head><body><p>Привет, мир</p></body></html>'
    (tmp_path / "a.html").write_bytes(page.encode("koi8-r"))
    (source,) = read_html(tmp_path / "a.html")
    assert isinstance(source, Source)
    assert plain(source) == [((), "Привет, мир")]


def test_a_pdf_is_its_text_layer(tmp_path: Path) -> None:
    """Reference: the lines that were written; a word that was cut at the end of a line is whole again."""
    path = write_pdf(tmp_path / "a.pdf", "The retrie-", "val of passages", "is a search.", title="On search")
    (source,) = read_pdf(path)
    assert (source.title, plain(source)) == ("On search", [((), "The retrieval of passages is a search.")])


def test_a_pdf_that_only_its_owner_may_change_is_read_and_one_with_a_password_is_not(tmp_path: Path) -> None:
    """Reference: the text before encryption, and the message."""
    path = encrypt_pdf(write_pdf(tmp_path / "a.pdf", TEXT), password="")
    (source,) = read_pdf(path)
    assert plain(source) == [((), TEXT)]
    with pytest.raises(NLTError, match="encrypted; save it without a password"):
        next(read_pdf(encrypt_pdf(write_pdf(tmp_path / "b.pdf", TEXT), password="secret")))


def test_a_scan_needs_its_text_recognised(tmp_path: Path) -> None:
    """Reference: the message, on a page without text."""
    with pytest.raises(NLTError, match="no text layer; recognise the text"):
        next(read_pdf(write_pdf(tmp_path / "a.pdf")))


def test_a_word_file_is_sections_under_headings(tmp_path: Path) -> None:
    """Reference: what was put into it."""
    (source,) = read_docx(write_docx(tmp_path / "a.docx"))
    assert source.title == "Manual"
    assert plain(source) == [(("Manual",), TEXT), (("Manual", "Prices"), f"{OTHER}\n\nbolt | three euros")]


def test_a_word_file_keeps_what_stands_in_fields_forms_and_tables(tmp_path: Path) -> None:
    """Reference: what Word shows once all changes are accepted, in the order of the file."""
    document = Document()
    paragraph = document.add_paragraph("plain ")
    for around in (
        "<w:ins {0}>{1}</w:ins>",
        "<w:del {0}><w:r><w:delText>deleted</w:delText></w:r></w:del>",
        "<w:moveFrom {0}>{1}</w:moveFrom>",
        "<w:sdt {0}><w:sdtPr><w:alias w:val='a'/></w:sdtPr><w:sdtContent>{1}</w:sdtContent></w:sdt>",
        "<w:sdt {0}><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>{1}</w:sdtContent></w:sdt>",
        "<w:fldSimple {0} w:instr='REF a'><w:smartTag>{1}</w:smartTag></w:fldSimple>",
    ):
        run = f"<w:r><w:t xml:space='preserve'>{around[3:6]} </w:t></w:r>"
        paragraph._p.append(parse_xml(around.format(nsdecls("w"), run)))
    form = f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p><w:r><w:t>a form</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(1, parse_xml(form))
    table = document.add_table(rows=2, cols=3)
    table.cell(0, 0).merge(table.cell(0, 2)).text = "wide"
    for column, text in enumerate(("one", "", "three")):
        table.cell(1, column).text = text
    table.cell(1, 1).add_table(1, 1).cell(0, 0).text = "inner"
    document.save(str(tmp_path / "a.docx"))
    (source,) = read_docx(tmp_path / "a.docx")
    assert plain(source) == [((), "plain ins sdt fld \n\na form\n\nwide\n\none | inner | three")]


def test_text_boxes_and_notes_of_a_word_file_follow_their_paragraph(tmp_path: Path) -> None:
    """Reference: what was put into it; Word writes a box twice, and its own first notes are lines."""
    box = "<w:txbxContent><w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent>"
    drawn = (
        f'<w:r {nsdecls("w")} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        f"<mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback></mc:AlternateContent></w:r>"
    )
    document = Document()
    document.add_heading("Heading")._p.append(parse_xml(drawn))
    paragraph = document.add_paragraph("a claim")
    for kind in ("footnote", "endnote"):
        paragraph._p.append(parse_xml(f'<w:r {nsdecls("w")}><w:{kind}Reference w:id="2"/></w:r>'))
        root = f"<w:{kind}s {nsdecls('w')}>" + "".join(
            f'<w:{kind} w:id="{number}"><w:p>{deleted}<w:r><w:t>{kind} {number}</w:t></w:r></w:p></w:{kind}>'
            for number, deleted in ((-1, ""), (2, "<w:del><w:r><w:t>old </w:t></w:r></w:del>"), (3, ""))
        )
        part = Part(PackURI(f"/word/{kind}s.xml"), f"{kind}s", f"{root}</w:{kind}s>".encode(), document.part.package)
        relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        document.part.relate_to(part, f"{relations}/{kind}s")
    document.add_paragraph("the end")
    document.save(str(tmp_path / "a.docx"))
    (source,) = read_docx(tmp_path / "a.docx")
    text = "in a box\n\na claim\n\nfootnote 2\n\nendnote 2\n\nthe end"
    assert plain(source) == [(("Heading",), text)]


def test_a_word_file_resolves_no_entity(tmp_path: Path) -> None:
    """Reference: the content of the file that an entity points to is nowhere in the text."""
    (tmp_path / "secret").write_text("HIDDEN")
    write_docx(tmp_path / "a.docx")
    with zipfile.ZipFile(tmp_path / "a.docx") as before, zipfile.ZipFile(tmp_path / "b.docx", "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "word/document.xml":
                entity = f'<!DOCTYPE d [<!ENTITY secret SYSTEM "file://{tmp_path / "secret"}">]>\n<w:document'
                content = content.replace(b"<w:document", entity.encode(), 1).replace(b"Retrieval", b"&secret; is")
            after.writestr(name, content)
    (source,) = read_docx(tmp_path / "b.docx")
    text = str(plain(source))
    assert TEXT in text
    assert "HIDDEN" not in text


@pytest.mark.parametrize("ending", [".pdf", ".docx", ".parquet"])
@pytest.mark.parametrize("content", ["empty", "garbage", "half"])
def test_a_damaged_file_raises(ending: str, content: str, tmp_path: Path) -> None:
    """Reference: no text comes of it; what calls a reader lists the error, whatever it is."""
    path = tmp_path / f"a{ending}"
    if content == "half" and ending == ".docx":
        whole = write_docx(tmp_path / "whole.docx").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 99, "half": b"%PDF-1.7\n1 0 obj\n<< /Type"}[content])
    with pytest.raises(Exception, match=r"."):
        list(READERS[ending](path))
