"""The stages `export`, `push` and `pull`: export and check a run's encoder, send to the Hub, and fetch from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.release import ExportArguments, PullArguments, PushArguments
from nlt_trainer.assembly.gains import check_scorer
from nlt_trainer.assembly.parts import processes
from nlt_trainer.choices import ExportForm
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.table import file_name
from nlt_trainer.files import TRAINED_QUERIES_FILE
from nlt_trainer.hub_calls import explained, patiently
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.lm.score_shards import ROUNDING, merge_shard, write_shards
from nlt_trainer.locations import is_hub_id
from nlt_trainer.release.card import (
    CARD_FILE,
    adapter_base_of,
    gains_card,
    read_release,
    scores_card,
    shareable,
    write_release,
)
from nlt_trainer.release.card_rendering import render_card
from nlt_trainer.release.export import export
from nlt_trainer.release.hub import SHARDS, Release, fetch_shards, folder_files, listing, pull, push, size
from nlt_trainer.run.folder import Run
from nlt_trainer.run.trained_queries import trained_queries_of
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json
from nlt_trainer.training_arguments import NLTTrainingArguments

logger = logging.getLogger(__name__)


def export_run(run: Run, form: ExportForm) -> tuple[Path, list[str]]:
    """Export a run's encoder into a folder that also holds its card, recipe and record.

    Returns:
        The folder, and the ways of loading that gave equal embeddings.

    Raises:
        NLTError: as `nlt_trainer.release.export.export`.
    """
    folder, equal = export(run, form)
    if folder != run.encoder:
        write_release(folder, *read_release(run.encoder), trained_on=trained_queries_of(str(run.encoder)))
    return folder, equal


def export_and_say(args: NLTTrainingArguments, form: ExportForm) -> Path | None:
    """Export the recipe's run and print what was checked; returns `None` in all processes except the main one."""
    if not processes(args).is_main_process:
        return None
    folder, equal = export_run(Run(str(args.output_dir)), form)
    say(f"{folder}: {form}; equal to the trained encoder within 1e-5: {', '.join(equal)}")
    return folder


def push_run(
    model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, export: ExportArguments, to: PushArguments
) -> None:
    """Send the encoder after a check, gains and scores; prints each file that is sent and the releases."""
    if not processes(args).is_main_process:
        return
    parts: list[tuple[str, str, dict[str, Path | bytes]]] = []
    if to.repo is not None and (folder := export_and_say(args, export.form)) is not None:
        parts.append((to.repo, "model", encoder_files(folder, to.repo) | mteb_files(Run(str(args.output_dir)))))
    if to.gains_repo is not None:
        parts.append((to.gains_repo, "dataset", gains_files(model, data)))
    api = HfApi(library_name="nlt_trainer")
    with TemporaryDirectory() as scratch:
        if to.scores_repo is not None:
            parts.append((to.scores_repo, "dataset", scores_files(api, to.scores_repo, data, Path(scratch))))
        for repo, repo_type, files in parts:
            say(f"{repo} ({repo_type}): {len(files)} files, {sum(map(size, files.values())):,} bytes")
            for name, content in files.items():
                say(f"  {size(content):>15,}  {name}")
            if not to.dry_run:
                say(said(push(api, repo, files, tag=to.tag, private=to.private, repo_type=repo_type)))


def said(release: Release) -> str:
    """Say in words what a push has done."""
    news = "new release" if release.is_new else "nothing has changed since release"
    return f"{release.repo}: {news} {release.tag}, {'private' if release.private else 'public'}"


def encoder_files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """The files of the encoder's repository; the card in it shows how to load the encoder from there.

    The keys of its training queries stay on this machine, because whoever guesses a query could check the guess.

    Raises:
        NLTError: the encoder is an adapter on a base that only this machine has.
    """
    base = adapter_base_of(folder)
    if base is not None and not is_hub_id(base):
        raise NLTError(f"{folder} is an adapter on {base}, which only this machine has; push --form merged")
    card = render_card(*read_release(folder), load_as=repo)
    files = folder_files(folder)
    files.pop(TRAINED_QUERIES_FILE, None)
    return {**files, CARD_FILE: card.encode()}


def mteb_files(run: Run) -> dict[str, Path | bytes]:
    """mteb's own results of the run's encoder, if `nlt evaluate` has written any."""
    name = "start" if run.keeps_start else run.report["objective"]
    results = sorted((run.mteb / file_name(name)).glob("*.json"))
    return {f"mteb/{path.name}": path for path in results}


def gains_files(model: ModelArguments, data: DataArguments) -> dict[str, Path | bytes]:
    """The files of the repository for the gains.

    Raises:
        NLTError: a file is missing, or the gains are not those that the audit and the recipe describe.
    """
    files = {"gains.jsonl": Path(data.gains), "candidates.jsonl": Path(data.candidates)}
    for path in files.values():
        if not path.is_file():
            raise NLTError(f"{path} is missing; run `nlt mine` and `nlt score`, or leave gains_repo out")
    audit = read_json(audit_file(data.gains), stage="nlt score")
    check_scorer(model, data, data.target)
    return {
        **files,
        "audit.json": json.dumps(shareable(audit), indent=2).encode(),
        CARD_FILE: gains_card(data, audit).encode(),
    }


def scores_files(api: HfApi, repo: str, data: DataArguments, scratch: Path) -> dict[str, Path | bytes]:
    """The files of the repository for the score cache: its card, and shards of the scores that it lacks.

    A cache whose description has a path of this machine, as that of a server's model may, is left out with a warning.

    Raises:
        NLTError: there are no scores to push, or the Hub refuses.
        DataError: a cache or a shard on the Hub is damaged.
    """
    caches = []
    for cache in ScoreCache.all_in(data.score_cache):
        description = json.loads(cache.description)
        if shareable(description) == description:
            caches.append(cache)
        else:
            logger.warning(
                "%s is not pushed, because it names its LLM by a path of this machine: %s; give the server's model "
                "another name, and score again",
                cache.path, cache.description,
            )  # fmt: skip
    if not any(map(len, caches)):
        raise NLTError(
            f"score_cache {data.score_cache} has nothing to push; run `nlt score`, or leave scores_repo out"
        )
    with explained(repo, repo_type="dataset"):
        exists = patiently(lambda: api.repo_exists(repo, repo_type="dataset"))
    there = scratch / "there"
    for shard in fetch_shards(api, repo)[1] if exists else []:
        merge_shard(shard, there)
    descriptions = {cache.path.stem: cache.description for cache in (*ScoreCache.all_in(there), *caches)}
    shards = [
        shard
        for cache in caches
        for shard in write_shards(cache, scratch, present=ScoreCache(there, json.loads(cache.description)))
    ]
    card = scores_card(descriptions).encode()
    return {CARD_FILE: card, **{f"{SHARDS}/{shard.name}": shard for shard in shards}}


def pull_release(of: PullArguments) -> None:
    """Fetch a release or scores, or in a dry run list the files; prints where they are and the commit."""
    api = HfApi(library_name="nlt_trainer")
    if of.dry_run:
        commit, files = listing(api, of.repo, revision=of.revision, repo_type=of.repo_type)
        say(f"{of.repo} at {commit}: {len(files)} files, {sum(files.values()):,} bytes")
        for name, n in files.items():
            say(f"  {n:>15,}  {name}")
    elif of.folder is not None:
        commit = pull(api, of.repo, Path(of.folder), revision=of.revision, repo_type=of.repo_type)
        say(f"{of.folder}: {of.repo} at {commit}")
    elif of.score_cache is not None:
        pull_scores(api, of.repo, of.score_cache, revision=of.revision)


def pull_scores(api: HfApi, repo: str, score_cache: str, *, revision: str | None) -> None:
    """Add published scores to a score cache; prints how many have come and the commit.

    Raises:
        NLTError: the Hub refuses, or the data set has no scores.
        DataError: the cache or a shard is damaged. The shards before it have been added.
    """
    commit, shards = fetch_shards(api, repo, revision=revision)
    if not shards:
        raise NLTError(f"{repo} has no scores at {commit}; name a data set that `nlt push --scores_repo` has written")
    merged = [merge_shard(shard, score_cache) for shard in shards]
    for merge in merged:
        if merge.different:
            logger.warning(
                "%s: %d scores differ from those in %s by more than %s nats a token, e.g. %s; those that are here "
                "stay, and one of the machines that scored is not to be trusted",
                repo, merge.different, merge.cache.path, ROUNDING, merge.example,
            )  # fmt: skip
    new, scores = sum(merge.new for merge in merged), sum(merge.scores for merge in merged)
    say(f"{score_cache}: {new:,} new of {scores:,} scores of {repo} at {commit}")
