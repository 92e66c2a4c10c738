"""Files that tests of reading documents need and that no text editor writes."""

from __future__ import annotations

from pathlib import Path

from docx import Document
from pypdf import PdfReader, PdfWriter

TEXT = "The quick brown fox jumps over the lazy dog and runs away."
OTHER = "Retrieval finds the passages that answer what a person asks for."


def write_pdf(path: Path, *lines: str, title: str = "") -> Path:
    """Write a PDF of one page by hand, with a line of Helvetica for each line of text."""
    shown = "".join(f"({line}) Tj T* " for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 50 700 Td {shown}ET".encode("latin-1")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (%s) >>" % title.encode("latin-1"),
    ]
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    trailer = b"trailer << /Size %d /Root 1 0 R /Info 6 0 R >>" % count
    start = len(content)
    content += b"xref\n0 %d\n0000000000 65535 f \n%s%s\nstartxref\n%d\n%%%%EOF\n" % (count, table, trailer, start)
    path.write_bytes(content)
    return path


def encrypt_pdf(path: Path, *, password: str) -> Path:
    """Encrypt a PDF with a password for its owner and the given one for its readers."""
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
    with path.open("wb") as handle:
        writer.write(handle)
    return path


def write_docx(path: Path) -> Path:
    """Write a Word file with a heading, a heading below it, paragraphs and a table."""
    document = Document()
    document.add_heading("Manual", level=1)
    document.add_paragraph(TEXT)
    document.add_heading("Prices", level=2)
    document.add_paragraph(OTHER)
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "bolt", "three euros"
    document.save(str(path))
    return path
