"""The stage `build_corpus`: from documents to passages, and what a person reads at its end."""

from __future__ import annotations

from pathlib import Path

from nlt_trainer.arguments.documents import DocumentArguments
from nlt_trainer.documents.corpus import REPORT_FILE, build_corpus
from nlt_trainer.documents.passages import FEWEST_WORDS, PassageLength
from nlt_trainer.documents.report import CorpusReport
from nlt_trainer.files import CORPUS_FILE
from nlt_trainer.terminal import say


def corpus(args: DocumentArguments, *, queries: Path | None = None) -> None:
    """Write the corpus; prints what was read and what was left out.

    Args:
        args: the options.
        queries: a file of queries, which is left out where it lies among the documents.
    """
    length = PassageLength(args.passage_words)
    report, before = build_corpus(args.documents, args.corpus, queries=queries, length=length)
    folder = Path(args.corpus)
    say(f"{folder / CORPUS_FILE}: {summary(report)}{' (done before)' if before else ''}")
    if left_out := left_out_in_words(report):
        say(f"  skipped: {left_out}; {folder / REPORT_FILE} lists them")
    if queries and queries.resolve().is_relative_to(Path(args.documents).resolve()):
        say(f"  left out: {queries}, which has the queries and is no document")


def summary(report: CorpusReport) -> str:
    """Say how many files, passages and duplicates there are."""
    parts = [f"{counted(report.files, 'file')} read, {counted(report.passages, 'passage')}"]
    if report.duplicates:
        parts.append(f"{counted(len(report.duplicates), 'duplicate')} folded")
    if report.too_short:
        parts.append(f"{counted(report.too_short, 'text')} of fewer than {FEWEST_WORDS} words left out")
    return ", ".join(parts)


def counted(number: int, thing: str) -> str:
    """A number and what it counts, in the plural unless it is one."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def left_out_in_words(report: CorpusReport) -> str:
    """Say which files and lines were skipped; empty where none was."""
    parts = []
    if report.skipped:
        first = report.skipped[0]
        parts.append(f"{counted(len(report.skipped), 'file')} (first {first['file']}: {first['reason']})")
    if report.other_kinds:
        kinds = ", ".join(f"{ending} {count}" for ending, count in list(report.other_kinds.items())[:5])
        parts.append(f"{sum(report.other_kinds.values())} of other kinds ({kinds})")
    if report.broken_lines:
        lines = counted(report.skipped_lines(), "line")
        parts.append(f"{lines} in {', '.join(list(report.broken_lines)[:3])}")
    return ", ".join(parts)
