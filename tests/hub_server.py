"""The part of the Hub's protocol that its own client uses, on the loopback and in memory, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Repo:
    """A repository: all its commits, newest last, each path -> content."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n*.parquet filter=lfs\n"})

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.head if revision == "main" else self.tags.get(revision, revision)
        return oid if oid in self.commits else None


@dataclass
class Fault:
    """What happens to the next requests in place of an answer.

    Args:
        method: of the request.
        path: regular expression that is searched in its path.
        status: of the answer; 0 cuts the connection after half of the content.
        times: how many requests it happens to.
        headers: of the answer.
    """

    method: str
    path: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """A request, the bytes of content that came with it, and the byte from which content was asked."""

    method: str
    path: str
    received: int = 0
    start: int = 0


class Hub(ThreadingHTTPServer):
    """A Hub with one user, `tester`, who may write everywhere but in the organisation `closed`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = Lock()
        self.connections: set[Any] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.lock:
            self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what has failed, unless it is a client that has died."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def finish(self) -> None:
        """Wait until everything is answered that came from clients that have ended."""
        while self.connections:
            time.sleep(0.002)

    def requests(self, method: str, path: str) -> list[Seen]:
        """Those whose path has a match of `path`, in order."""
        return [seen for seen in self.seen if seen.method == method and re.search(path, seen.path)]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that runs until the block ends."""
    with Hub() as hub:
        Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class Answer(Exception):
    """Ends the handling of a request."""

    def __init__(self, status: int, content: Any = b"", **headers: str):
        super().__init__(status)
        self.status = status
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        seen = Seen(self.command, path, start=int(start[1]) if start else 0)
        with self.server.lock:
            self.server.seen.append(seen)
            fault = next((f for f in self.server.faults if f.method == self.command and re.search(f.path, path)), None)
            if fault is not None:
                fault.times -= 1
                self.server.faults = [f for f in self.server.faults if f.times > 0]
        length = int(self.headers.get("Content-Length", 0))
        cut = fault is not None and fault.status == 0
        body = self.rfile.read(length // 2 if cut else length)
        seen.received = len(body)
        if len(body) < length and self.command in ("PUT", "POST"):  # cut on purpose, or the client has died
            return self.cut()
        try:
            if fault is not None and not cut:
                raise Answer(fault.status, {"error": "a fault of the test"}, **fault.headers)
            self.route(path, body)
        except Answer as answer:
            self.answer(answer, cut=cut, start=seen.start)

    def cut(self) -> None:
        """Break the connection as a network does."""
        self.close_connection = True
        with suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, answer: Answer, *, cut: bool, start: int) -> None:
        content = answer.content[start:]
        partial = answer.status == 200 and start > 0
        self.send_response(206 if partial else answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if partial:
            total = len(answer.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.cut()

    def route(self, path: str, body: bytes) -> None:
        """Find what a path asks for.

        Raises:
            Answer: always.
        """
        signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/whoami-v2":
            raise Answer(200, {"name": "tester", "type": "user"}) if signed_in else Answer(401, {"error": "no"})
        if path == "/api/validate-yaml":
            errors = [{"message": '"license" must be one of [...]'}] if b"license: none-such" in body else []
            raise Answer(400 if errors else 200, {"errors": errors, "warnings": []})
        if path == "/api/repos/create":
            self.create(json.loads(body), signed_in=signed_in)
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            matches = hashlib.sha256(body).hexdigest() == found[1]
            self.server.large |= {found[1]: body} if matches else {}
            raise Answer(200 if matches else 400)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            repo = self.repo(f"{found[1]}/{found[2]}", signed_in=signed_in)
            self.api(repo, found[2], found[3] or "", body)
        if found := re.fullmatch(
            r"/(datasets/)?([^/]+/[^/]+)(?:/resolve/([^/]+)/(.*)|\.git/info/lfs/objects/batch)", path
        ):
            repo = self.repo(f"{found[1] or 'models/'}{found[2].removesuffix('.git')}", signed_in=signed_in)
            self.batch(json.loads(body)) if found[3] is None else self.file(repo, found[3], found[4])
        raise Answer(404, {"error": f"{path} is not part of this Hub"})

    def create(self, wanted: dict[str, Any], *, signed_in: bool) -> None:
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        if not signed_in:
            raise Answer(401, {"error": "who are you"})
        if name.startswith("closed/"):
            raise Answer(403, {"error": "not yours"}, X_Error_Message="not yours")
        key = f"{wanted.get('type') or 'model'}s/{name}"
        if key in self.server.repos:
            raise Answer(409, {"error": "it is there", "url": f"{self.server.url}/{name}"})
        self.server.repos[key] = Repo(private=wanted.get("visibility") == "private")
        raise Answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def repo(self, key: str, *, signed_in: bool) -> Repo:
        repo = self.server.repos.get(key)
        if repo is None or (repo.private and not signed_in):
            status = 404 if signed_in else 401
            raise Answer(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repo.gated:
            raise Answer(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="ask for access")
        return repo

    def api(self, repo: Repo, name: str, rest: str, body: bytes) -> None:
        verb, _, revision = rest.partition("/")
        commit = repo.resolve(revision.split("/")[0] if revision else "main")
        if verb == "refs":
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}]
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repo.tags.items()]
            raise Answer(200, {"branches": branches, "tags": tags, "converts": []})
        if commit is None:
            raise Answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        files = repo.commits[commit]
        if verb in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            times = {"createdAt": DATE, "lastModified": DATE}
            known = {"id": name, "sha": commit, "private": repo.private, "tags": [], **times}
            raise Answer(200, known | {"siblings": siblings})
        if verb == "commits":
            raise Answer(
                200,
                [{"id": c, "title": "", "message": "", "date": DATE, "authors": []} for c in reversed(repo.commits)],
            )
        if verb == "tree":
            raise Answer(200, [entry(path, content) for path, content in files.items()])
        if verb == "preupload":
            raise Answer(200, {"files": [mode(file, files) for file in json.loads(body)["files"]]})
        if verb == "tag":
            tag = json.loads(body)["tag"]
            if tag in repo.tags:
                raise Answer(409, {"error": "the tag is there"})
            repo.tags[tag] = commit
            raise Answer(200, {})
        if verb == "commit":
            oid = repo.commit(self.changed(files, [json.loads(line) for line in body.splitlines()]))
            raise Answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def changed(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> dict[str, bytes]:
        """The files after a commit."""
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            if item["oid"] not in self.server.large
            else item
            for item in wanted["objects"]
        ]
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def file(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.resolve(revision)
        if commit is None:
            raise Answer(404, X_Error_Code="RevisionNotFound")
        if path not in repo.commits[commit]:
            raise Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = repo.commits[commit][path]
        raise Answer(
            200, content, ETag=f'"{entry(path, content)["oid"]}"', X_Repo_Commit=commit, Accept_Ranges="bytes"
        )


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet"))


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in a listing; its id is git's, or the SHA-256 of a large one."""
    if not is_large(path):
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    oid = hashlib.sha256(content).hexdigest()
    large = {"oid": oid, "size": len(content), "pointerSize": 134}
    return {"type": "file", "path": path, "size": len(content), "oid": oid, "lfs": large}


def mode(file: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """How a file is to be sent, and the id of what is there."""
    path = file["path"]
    there = None
    if path in files:
        content = files[path]
        blob = b"blob %d\0" % len(content) + content  # git's id
        there = entry(path, content)["oid"] if is_large(path) else hashlib.sha1(blob).hexdigest()
    return {
        "path": path,
        "uploadMode": "lfs" if is_large(path) else "regular",
        "shouldIgnore": False,
        "oid": there,
    }
