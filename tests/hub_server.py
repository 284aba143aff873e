"""A hub on 127.0.0.1: as much of Hugging Face and ModelScope as their clients ask for, with faults on demand.

    python -m tests.hub_server FOLDER [--rate BYTES_PER_S] [--fault KIND:STAGE:PATTERN:TIMES[:VALUE]] ...

serves FOLDER/OWNER/NAME/* as repositories, prints its address and runs until it is ended. Clients find it with
HF_ENDPOINT=ADDRESS and MODELSCOPE_ENDPOINT=ADDRESS; a single file is at ADDRESS/files/OWNER/NAME/FILE.

Source for the protocols: what huggingface_hub 2.4 and modelscope's hub/api.py send and read.
"""

from __future__ import annotations

import argparse
import contextlib
import email.utils
import fnmatch
import functools
import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

_CHUNK_BYTES = 16 << 10
_LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")
_REVISIONS = ("main", "master")

# status           any status: value is its number, or "GatedRepo" for 403 with that code
# retry_after      429; value is what Retry-After holds
# cut              the connection ends after value tenths of the whole file
# wrong_bytes      as many bytes as there should be, others
# wrong_length     value bytes too many (below 0: too few), and a header that says so
# stall            nothing more after value tenths, for as long as the client waits (30 s at most)
# no_ranges        the whole file, whatever was asked for
# no_if_range      the bytes asked for, also of another version of the file
# status_200_range what was asked for, with status 200, as ModelScope does
# redirect_loop    a redirect to itself
# redirect_to      a redirect to the URL in value
# slow             value bytes a second
# no_json          a page for people where JSON is asked for
KINDS = frozenset({"status", "retry_after", "cut", "wrong_bytes", "wrong_length", "stall", "no_ranges", "no_if_range",
                   "status_200_range", "redirect_loop", "redirect_to", "slow", "no_json"})  # fmt: skip


@dataclass(kw_only=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: One of KINDS.
        stage: "listing" or "file".
        pattern: Names of files it holds for, as in a shell; of repositories for a listing.
        source: "huggingface", "modelscope" or "url"; "*" for all.
        times: How often; below 0 for ever.
        value: See KINDS.
    """

    kind: str
    stage: str = "file"
    pattern: str = "*"
    source: str = "*"
    times: int = -1
    value: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}: {sorted(KINDS)}")


@dataclass(frozen=True)
class Request:
    """A request that came in: stage is "listing", "file" or "other"; method and range as sent."""

    source: str
    stage: str
    method: str
    name: str
    range: str
    has_token: bool


@dataclass
class _File:
    path: Path
    name: str
    size: int
    sha256: str
    git_sha1: str

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(_LFS_SUFFIXES)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_sha1


@functools.lru_cache(maxsize=256)
def _describe(path: Path, name: str, mtime_ns: int) -> _File:
    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return _File(path, name, len(data), hashlib.sha256(data).hexdigest(), git)


@dataclass
class Hub:
    """The server. Use it in a with block.

    Attributes:
        folder: OWNER/NAME/FILE below it.
        faults: Looked through in order for each request; may be changed at any time.
        licences: Repository -> licence.
        requests: What was asked, in order.
        bytes_sent: File name -> bytes of its body that were sent.
        rate: Bytes a second of each answer, 0 for as fast as it goes.
    """

    folder: Path
    faults: list[Fault] = field(default_factory=list)
    licences: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    rate: float = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __enter__(self) -> Self:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def downloads(self, name: str) -> int:
        """Return how often bytes of a file were asked for."""
        return sum(
            item.stage == "file" and item.method == "GET" and item.name == name for item in self.requests
        )

    def take_fault(self, source: str, stage: str, name: str, kinds: frozenset[str] = KINDS) -> Fault | None:
        """Return the fault that strikes now, and count it."""
        with self.lock:
            for fault in self.faults:
                matches = fault.stage == stage and fault.source in ("*", source) and fault.kind in kinds
                if matches and fault.times and fnmatch.fnmatch(name, fault.pattern):
                    fault.times -= 1
                    return fault
        return None

    def files(self, repository: str) -> list[_File] | None:
        """Return the files of a repository, None where there is none."""
        folder = self.folder / repository
        if repository.count("/") != 1 or ".." in repository or not folder.is_dir():
            return None
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            _describe(path, path.relative_to(folder).as_posix(), path.stat().st_mtime_ns) for path in paths
        ]

    def commit(self, repository: str) -> str:
        """Return the commit of a repository: another one when a file changes."""
        text = "".join(f"{file.name} {file.sha256}\n" for file in self.files(repository) or ())
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.ended = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # clients that go away are what this is for


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)(/repo(?:/files)?)?", path):
            self._modelscope(found[1], found[2] or "", query)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._huggingface(found[1], found[2] or "", found[3] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/(storage|files)/([^/]+/[^/]+)/(.+)", path):
            source = "huggingface" if found[1] == "storage" else "url"
            file = next((file for file in hub.files(found[2]) or () if file.name == found[3]), None)
            # huggingface_hub follows redirects on one host by itself, and wants the commit at their end.
            commit = {"X_Repo_Commit": hub.commit(found[2])} if source == "huggingface" else {}
            self._send_file(source, file, found[3], **commit)
        else:
            self._note("other", "other", path)
            self._send(404, b"no such page")

    def _note(self, source: str, stage: str, name: str) -> None:
        has_token = "Authorization" in self.headers
        request = Request(source, stage, self.command, name, self.headers.get("Range", ""), has_token)
        with self.server.hub.lock:
            self.server.hub.requests.append(request)

    def _send(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, data: Any, status: int = 200, **headers: object) -> None:
        self._send(status, json.dumps(data).encode(), Content_Type="application/json", **headers)

    def _fail(self, fault: Fault | None) -> bool:
        """Answer as a fault says that needs no file; return whether that was an answer."""
        match fault.kind if fault is not None else "":
            case "status":
                assert fault is not None
                gated = fault.value == "GatedRepo"
                headers = {"X_Error_Code": "GatedRepo"} if gated else {}
                self._send(403 if gated else fault.value, b"{}", **headers)
            case "retry_after":
                assert fault is not None
                self._send(429, b"{}", Retry_After=fault.value)
            case "redirect_loop":
                self._send(302, Location=self.path)
            case "redirect_to":
                assert fault is not None
                self._send(302, Location=fault.value)
            case "no_json":
                self._send(200, b"<html>Welcome to this network</html>")
            case _:
                return False
        return True

    def _listing_fails(self, source: str, repository: str) -> bool:
        self._note(source, "listing", repository)
        fault = self.server.hub.take_fault(source, "listing", repository)
        if fault is not None and fault.kind == "stall":
            self.server.ended.wait(30)
            self.close_connection = True
            return True
        if fault is not None and fault.kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": ')
            self.close_connection = True
            return True
        return self._fail(fault)

    def _huggingface(self, repository: str, what: str, revision: str) -> None:
        hub = self.server.hub
        if self._listing_fails("huggingface", repository):
            return
        files = hub.files(repository)
        if files is None:
            self._send_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        commit = hub.commit(repository)
        if revision not in (*_REVISIONS, commit):
            self._send_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return
        if what == "tree":
            self._send_json([self._entry(file) for file in files])
            return
        rows = [self._sibling(file) for file in files]
        licence = hub.licences.get(repository)
        self._send_json(
            {
                "id": repository,
                "modelId": repository,
                "sha": commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [f"license:{licence}"] if licence else [],
                "cardData": {"license": licence} if licence else {},
                "siblings": rows,
            }
        )

    @staticmethod
    def _sibling(file: _File) -> dict[str, Any]:
        row: dict[str, Any] = {"rfilename": file.name, "size": file.size, "blobId": file.git_sha1}
        if file.is_lfs:
            row["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
        return row

    @staticmethod
    def _entry(file: _File) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "oid": file.git_sha1, "size": file.size, "path": file.name}
        if file.is_lfs:
            row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
        return row

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        hub = self.server.hub
        files = hub.files(repository)
        commit = hub.commit(repository)
        file = next((file for file in files or () if file.name == name), None)
        if files is None or revision not in (*_REVISIONS, commit) or file is None:
            code = (
                "RepoNotFound" if files is None else "EntryNotFound" if file is None else "RevisionNotFound"
            )
            self._note("huggingface", "other", name)
            self._send(404, X_Error_Code=code)
        elif file.is_lfs:
            self._note("huggingface", "resolve", name)
            if self._fail(
                hub.take_fault(
                    "huggingface", "file", name, frozenset({"status", "redirect_loop", "redirect_to"})
                )
            ):
                return
            self._send(
                302,
                Location=f"/storage/{repository}/{name}",
                X_Repo_Commit=commit,
                X_Linked_Etag=f'"{file.etag}"',
                X_Linked_Size=file.size,
            )
        else:
            self._send_file("huggingface", file, name, X_Repo_Commit=commit)

    def _modelscope(self, repository: str, what: str, query: dict[str, str]) -> None:
        hub = self.server.hub
        files = hub.files(repository)
        if what == "/repo" and files is not None:
            name = query.get("FilePath", "")
            self._send_file("modelscope", next((file for file in files if file.name == name), None), name)
            return
        if what == "/repo/files" and self._listing_fails("modelscope", repository):
            return
        if files is None or query.get("Revision", "master") not in _REVISIONS:
            self._send_json({"Code": 10010205001, "Message": "not found", "Success": False}, 404)
            return
        data: dict[str, Any] = {"License": hub.licences.get(repository, "")}
        if what == "/repo/files":
            rows = [
                {
                    "Name": Path(file.name).name,
                    "Path": file.name,
                    "Size": file.size,
                    "Sha256": file.sha256,
                    "IsLFS": file.is_lfs,
                    "Type": "blob",
                    "Revision": hub.commit(repository),
                }
                for file in files
            ]
            data = {"Files": [*rows, {"Name": "folder", "Path": "folder", "Size": 0, "Type": "tree"}]}
        self._send_json({"Code": 200, "Success": True, "Message": "success", "Data": data})

    def _send_file(self, source: str, file: _File | None, name: str, **headers: object) -> None:
        hub = self.server.hub
        self._note(source, "file", name)
        fault = hub.take_fault(source, "file", name) if self.command == "GET" else None
        if self._fail(fault):
            return
        if file is None:
            self._send(404)
            return
        kind, value = (fault.kind, fault.value) if fault is not None else ("", None)
        data = file.path.read_bytes()
        etag = f'"{file.etag}"'
        if kind == "wrong_bytes":
            data = bytes(byte ^ 0xFF for byte in data[:64]) + data[64:]
        elif kind == "wrong_length":
            data = data + b"x" * value if value > 0 else data[:value]
        start = self._start(len(data), etag, kind != "no_if_range") if kind != "no_ranges" else 0
        if start is None:
            self._send(416, Content_Range=f"bytes */{len(data)}")
            return
        body = data[start:]
        self.send_response(206 if start and kind != "status_200_range" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", email.utils.formatdate(0, usegmt=True))
        if start and kind != "status_200_range":
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for header, text in headers.items():
            self.send_header(header.replace("_", "-"), str(text))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body)
        if kind in ("cut", "stall"):
            end = max(0, len(data) * value // 10 - start)
        self._send_body(name, body[:end], value if kind == "slow" else hub.rate)
        if kind == "stall":
            self.server.ended.wait(30)
        if end < len(body):
            self.close_connection = True

    def _start(self, length: int, etag: str, minds_if_range: bool) -> int | None:
        """Return the first byte asked for, None for one behind the end."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if found is None or (minds_if_range and self.headers.get("If-Range", etag) != etag):
            return 0
        return int(found[1]) if int(found[1]) < length else None

    def _send_body(self, name: str, body: bytes, rate: float) -> None:
        hub = self.server.hub
        chunk_bytes = max(256, min(_CHUNK_BYTES, int(rate * 0.02))) if rate else _CHUNK_BYTES
        for offset in range(0, len(body), chunk_bytes):
            chunk = body[offset : offset + chunk_bytes]
            # Before: whoever has the last byte may look at once.
            with hub.lock:
                hub.bytes_sent[name] = hub.bytes_sent.get(name, 0) + len(chunk)
            self.wfile.write(chunk)
            if rate and self.server.ended.wait(len(chunk) / rate):
                return


def _parse_fault(text: str) -> Fault:
    kind, stage, pattern, times, *value = text.split(":")
    parsed = int(value[0]) if value and value[0].lstrip("-").isdigit() else "".join(value)
    return Fault(kind=kind, stage=stage, pattern=pattern, times=int(times), value=parsed)


def main() -> None:
    """Serve a folder until the process is ended."""
    parser = argparse.ArgumentParser(description="A stand-in for Hugging Face and ModelScope on 127.0.0.1.")
    parser.add_argument("folder", type=Path, help="holds OWNER/NAME/FILES")
    parser.add_argument("--rate", type=float, default=0, help="bytes a second of each answer")
    parser.add_argument(
        "--fault", type=_parse_fault, action="append", default=[], help="KIND:STAGE:PATTERN:TIMES[:VALUE]"
    )
    options = parser.parse_args()
    with Hub(options.folder, faults=options.fault, rate=options.rate) as hub:
        sys.stdout.write(f"{hub.endpoint}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
