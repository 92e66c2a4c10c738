"""From documents to the `corpus.jsonl` of a BEIR folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

from tqdm.auto import tqdm

from nlt_trainer.data.beir import Document, load_corpus
from nlt_trainer.documents.duplicates import Duplicates
from nlt_trainer.documents.encodings import clean
from nlt_trainer.documents.passages import FEWEST_WORDS, PassageLength, cut
from nlt_trainer.documents.readers import READERS
from nlt_trainer.documents.report import CorpusReport, read_report
from nlt_trainer.documents.tables import BrokenLine
from nlt_trainer.documents.walk import find_files
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.files import CORPUS_FILE, check_folder, mark_folder, sweep
from nlt_trainer.terminal import SECONDS
from nlt_trainer.text_files import write_jsonl

REPORT_FILE = "corpus.report.json"
WAY = 3
"""Raised whenever the same files give other passages, so that a corpus is made anew."""
FEWEST_PASSAGES = 2
"""A search needs something to choose from."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\udc80-\udcff]")
"""What a file's name may hold and an id may not; written as `%0A` and the like."""
WORDS = PassageLength()


def build_corpus(
    documents: str | Path, out: str | Path, *, queries: str | Path | None = None, length: PassageLength = WORDS
) -> tuple[CorpusReport, bool]:
    """Write `corpus.jsonl` and its report; return the report, and whether both are those of an earlier call.

    A BEIR folder, or its `corpus.jsonl`, is copied with its ids. Other files are cut into passages, of which near
    duplicates are left out.

    Args:
        documents: a folder, which is read with its subfolders, or one file.
        out: the folder to write. It is left out where it lies inside `documents`.
        queries: a file of queries, which is no document and is left out, too.
        length: of a passage.

    Raises:
        DataError: `documents` is missing or gives fewer than 2 passages, or a BEIR corpus is malformed.
        NLTError: `out` is the folder that is read, or holds files that this stage has not written.
    """
    documents, out = Path(documents), Path(out)
    beir = check_paths(documents, out)
    report = CorpusReport(_printable(str(documents)), "", length.unit, None if beir else length.most)
    without = [out] if queries is None else [out, Path(queries)]
    found = find_files(beir or documents, without=without, refuse=lambda path, reason: None)
    files, report.key = _state(found, report)
    earlier = read_report(out / REPORT_FILE)
    if earlier and earlier.key == report.key and _is_as_written(out / CORPUS_FILE, earlier):
        return earlier, True
    sweep(out)
    passages = _copied(beir, report) if beir else _read(documents, without, report, files=files, length=length)
    write_jsonl(out / CORPUS_FILE, _rows(passages, out, report))
    report.corpus_bytes, report.corpus_hash = (out / CORPUS_FILE).stat().st_size, file_hash(out / CORPUS_FILE)
    report.write(out / REPORT_FILE)
    return report, False


def check_paths(documents: Path, out: Path) -> Path | None:
    """Refuse what cannot be read or written; return the corpus file if `documents` is a BEIR folder or that file.

    Raises:
        DataError: `documents` is missing.
        NLTError: as `build_corpus`.
    """
    if not documents.exists():
        raise DataError(documents, "not found; name a folder of documents, or one file")
    if out.resolve() == (documents if documents.is_dir() else documents.parent).resolve():
        raise NLTError(f"{out} is the folder that is read; name another one for the corpus")
    check_folder(out, stage="nlt build_corpus")
    file = documents / CORPUS_FILE if documents.is_dir() else documents
    return file if file.name == CORPUS_FILE and file.is_file() else None


def _state(found: Iterable[Path], report: CorpusReport) -> tuple[int, str]:
    """The number of files, and a hash of their names and contents and of the settings (16 hex digits)."""
    digest = hashlib.blake2b(f"{WAY} {report.documents} {report.unit} {report.most}".encode(), digest_size=8)
    count = 0
    for path in tqdm(found, desc="comparing", unit=" files", delay=SECONDS, leave=False):
        count += 1
        digest.update(os.fsencode(path) + f"\0{_content(path)}\n".encode())
    return count, digest.hexdigest()


def _content(path: Path) -> str:
    """Hash of a file that is read; of another one nothing counts, and of one that cannot be read the reason."""
    if path.suffix.lower() not in READERS:
        return ""
    try:
        return file_hash(path)
    except OSError as error:
        return str(error.strerror)


def _is_as_written(corpus: Path, report: CorpusReport) -> bool:
    """Whether a corpus is as an earlier call has left it; the reports of version 0.1 know its size alone."""
    if not corpus.is_file() or corpus.stat().st_size != report.corpus_bytes:
        return False
    return report.corpus_hash in (None, file_hash(corpus))


def _rows(passages: Iterable[Document], out: Path, report: CorpusReport) -> Iterator[dict[str, str]]:
    """Each passage as a line of the corpus; marks the folder as written by this package once there are enough."""
    for passage in passages:
        report.passages += 1
        yield {"_id": passage.id, "title": passage.title, "text": passage.text}
    if report.passages < FEWEST_PASSAGES:
        raise _too_few(report)
    mark_folder(out, stage="nlt build_corpus")


def _copied(file: Path, report: CorpusReport) -> Iterator[Document]:
    report.files = 1
    yield from load_corpus(file.parent).values()


def _read(
    documents: Path, without: list[Path], report: CorpusReport, *, files: int, length: PassageLength
) -> Iterator[Document]:
    """The passages of all files without duplicates."""
    root = documents if documents.is_dir() else documents.parent
    duplicates = Duplicates()
    found = find_files(documents, without=without, refuse=lambda path, reason: report.skip(_name(path, root), reason))
    for path in tqdm(found, total=files, desc="reading", unit=" files", delay=SECONDS, leave=False):
        for passage, said in _passages(path, _name(path, root), report, length):
            original = duplicates.stands_for(passage.id, said)
            if original is None:
                yield passage
            else:
                report.duplicates[passage.id] = original


def _passages(path: Path, name: str, report: CorpusReport, length: PassageLength) -> Iterator[tuple[Document, str]]:
    """The passages of a file, each with what it says, which for a row of a table includes its title.

    A file that cannot be read goes into the report, whatever its reader raises.
    """
    ending = Path(name).suffix.lower()
    if ending not in READERS:
        report.other_kinds[ending or "none"] = report.other_kinds.get(ending or "none", 0) + 1
        return
    title, given = re.sub(r"[_\s]+", " ", _name(path, path.parent).removesuffix(path.suffix)), 0
    try:
        for source in READERS[ending](path):
            if isinstance(source, BrokenLine):
                report.broken_line(name, source.line, source.reason)
                continue
            passages, short = cut(source, name, title=title, length=length)
            report.too_short += short
            given += len(passages)
            yield from ((p, p.text if source.row is None else p.content) for p in passages)
    except Exception as error:  # the libraries raise all kinds of errors where a file is damaged
        kind = "" if isinstance(error, NLTError) else f"{type(error).__name__}: "
        report.skip(name, " ".join(clean(f"{kind}{error}").split()), passages=given)
        return
    if given:
        report.files += 1
    else:
        report.skip(name, f"has no text of at least {FEWEST_WORDS} words")


def _name(path: Path, root: Path) -> str:
    """Path below the folder that is read, in a form that every file and terminal can hold."""
    return _printable(path.relative_to(root).as_posix())


def _printable(name: str) -> str:
    return UNPRINTABLE.sub(lambda match: quote_from_bytes(os.fsencode(match[0])), name)


def _too_few(report: CorpusReport) -> DataError:
    """The error for documents that give no corpus: what was found, and what can be read."""
    parts = [f"{count} {ending}" for ending, count in report.other_kinds.items()]
    found = f"; files of other kinds: {', '.join(parts)}" if parts else ""
    if report.duplicates:
        found += f"; {len(report.duplicates)} more say the same and were left out"
    if report.skipped:
        first = report.skipped[0]
        were = "files were" if len(report.skipped) > 1 else "file was"
        found += f"; {len(report.skipped)} {were} skipped, the first is {first['file']} ({first['reason']})"
    if report.passages:
        remedy = f"give more text; longer texts are cut into several passages, of {report.most} {report.unit} at most"
    else:
        remedy = f"give files with text; these endings are read: {' '.join(READERS)}"
    passages = f"{report.passages} passage{'s' * (report.passages != 1)}"
    return DataError(report.documents, f"gives {passages}, and at least {FEWEST_PASSAGES} are needed{found}; {remedy}")
