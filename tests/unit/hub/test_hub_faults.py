"""Every fault, from every source: the right file, or an error that says what to do; never a wrong file."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from hub_server import Fault, Hub

from qwen_edge import hub
from qwen_edge.errors import DigestError, DownloadError, HubUnreachableError, QwenEdgeError
from qwen_edge.hub import transfer
from qwen_edge.hub.web import Patience
from qwen_edge.paths import cache_root

REPOSITORY, NAME = "org/tiny-GGUF", "tiny-Q8_0.gguf"
SOURCES = ("huggingface", "modelscope", "url")
STALLS = Patience(timeout_s=0.4, tries=2, first_wait_s=0.001)


def pull_one(server: Hub, source: str, patience: Patience) -> hub.PullResult:
    if source == "url":
        sha256 = next(file.sha256 for file in server.files(REPOSITORY) or () if file.name == NAME)
        url = f"{server.endpoint}/files/{REPOSITORY}/{NAME}"
        return hub.pull(url, sha256=sha256, patience=patience)
    return hub.pull(f"{REPOSITORY}@Q8_0", source=source, patience=patience)  # type: ignore[arg-type]


def named_files(tmp_path: Path) -> list[Path]:
    """Return all files that have a final name."""
    folders = tmp_path / "huggingface", cache_root()
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
        and not path.name.endswith((".lock", ".part", ".incomplete", ".sqlite", ".manifest.json", "-journal"))
        and path.parent.name != "refs"
    ]


def check(server: Hub, source: str, patience: Patience, tmp_path: Path, error: type | None) -> None:
    """Pull, and compare with what is expected: the right bytes, or this error and no file."""
    right = (server.folder / REPOSITORY / NAME).read_bytes()
    if error is None:
        assert pull_one(server, source, patience).path.read_bytes() == right
    else:
        with pytest.raises(error) as raised:
            pull_one(server, source, patience)
        assert isinstance(raised.value, QwenEdgeError)
        assert raised.value.hint
    for path in named_files(tmp_path):
        assert path.read_bytes() == right, path
    assert bool(named_files(tmp_path)) == (error is None)


# What strikes, how it ends when it strikes once, how when always.
FILE_FAULTS = {
    "401": ({"kind": "status", "value": 401}, DownloadError, DownloadError),
    "403": ({"kind": "status", "value": 403}, DownloadError, DownloadError),
    "403-gated": ({"kind": "status", "value": "GatedRepo"}, DownloadError, DownloadError),
    "404": ({"kind": "status", "value": 404}, DownloadError, DownloadError),
    "429": ({"kind": "retry_after", "value": 0}, None, DownloadError),
    "429-an-hour": ({"kind": "retry_after", "value": 3600}, DownloadError, DownloadError),
    "500": ({"kind": "status", "value": 500}, None, DownloadError),
    "502": ({"kind": "status", "value": 502}, None, DownloadError),
    "503": ({"kind": "status", "value": 503}, None, DownloadError),
    "cut": ({"kind": "cut", "value": 5}, None, DownloadError),
    "wrong-bytes": ({"kind": "wrong_bytes"}, None, DigestError),
    "too-long": ({"kind": "wrong_length", "value": 7}, None, DigestError),
    "too-short": ({"kind": "wrong_length", "value": -7}, None, DigestError),
    "stalled": ({"kind": "stall", "value": 5}, None, HubUnreachableError),
    # One that ends is followed to the file.
    "redirect-loop": ({"kind": "redirect_loop"}, None, DownloadError),
    "slow": ({"kind": "slow", "value": 2_000_000}, None, None),
    "ranges-ignored": ({"kind": "no_ranges"}, None, None),
    "ranges-as-200": ({"kind": "status_200_range"}, None, None),
}


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_fault_while_a_file_is_sent(
    hub_server: Hub,
    patience: Patience,
    tmp_path: Path,
    fault: str,
    source: str,
    always: bool,
) -> None:
    settings, once_error, always_error = FILE_FAULTS[fault]
    if fault.startswith("ranges"):
        hub_server.faults.append(Fault(kind="cut", value=4, times=1))
    hub_server.faults.append(Fault(**settings, times=-1 if always else 1))
    if fault == "stalled":
        patience = STALLS
    error = always_error if always else once_error
    check(hub_server, source, patience, tmp_path, error)
    # Without the fault the same command succeeds, from whatever state it left.
    hub_server.faults.clear()
    check(hub_server, source, patience, tmp_path, None)


LISTING_FAULTS = {
    "401": ({"kind": "status", "value": 401}, DownloadError, DownloadError),
    "403": ({"kind": "status", "value": 403}, DownloadError, DownloadError),
    "403-gated": ({"kind": "status", "value": "GatedRepo"}, DownloadError, DownloadError),
    "404": ({"kind": "status", "value": 404}, DownloadError, DownloadError),
    "429": ({"kind": "retry_after", "value": 0}, None, DownloadError),
    "500": ({"kind": "status", "value": 500}, None, DownloadError),
    "503": ({"kind": "status", "value": 503}, None, DownloadError),
    "cut": ({"kind": "cut"}, None, DownloadError),
    "stalled": ({"kind": "stall"}, None, HubUnreachableError),
    "redirect-loop": ({"kind": "redirect_loop"}, None, DownloadError),
    "no-json": ({"kind": "no_json"}, None, DownloadError),
}


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("fault", LISTING_FAULTS)
def test_a_fault_while_files_are_listed(
    hub_server: Hub,
    patience: Patience,
    tmp_path: Path,
    fault: str,
    source: str,
    always: bool,
) -> None:
    settings, once_error, always_error = LISTING_FAULTS[fault]
    hub_server.faults.append(Fault(**settings, stage="listing", times=-1 if always else 1))
    if fault == "stalled":
        patience = dataclasses.replace(patience, timeout_s=0.8)
    error = always_error if always else once_error
    check(hub_server, source, patience, tmp_path, error)


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("source", SOURCES)
def test_a_cut_is_continued_where_it_was(
    hub_server: Hub, patience: Patience, source: str, tenths: int
) -> None:
    hub_server.faults.append(Fault(kind="cut", value=tenths, times=1))
    result = pull_one(hub_server, source, patience)
    right = (hub_server.folder / REPOSITORY / NAME).read_bytes()
    assert result.path.read_bytes() == right
    assert hub_server.bytes_sent[NAME] == len(right)  # none of them twice


@pytest.mark.parametrize("source", SOURCES)
def test_an_interrupted_run_is_continued_by_the_next(
    hub_server: Hub, patience: Patience, source: str
) -> None:
    hub_server.faults.append(Fault(kind="cut", value=6, times=1))
    with pytest.raises(DownloadError):
        pull_one(hub_server, source, dataclasses.replace(patience, tries=1))
    result = pull_one(hub_server, source, patience)
    assert hub_server.bytes_sent[NAME] == result.size_bytes == 200_000
    assert any(item.range == "bytes=120000-" for item in hub_server.requests)


def test_another_source_continues_the_same_file(hub_server: Hub, patience: Patience) -> None:
    hub_server.faults.append(Fault(kind="cut", value=6, times=1))
    with pytest.raises(DownloadError):
        pull_one(hub_server, "modelscope", dataclasses.replace(patience, tries=1))
    assert pull_one(hub_server, "url", patience).size_bytes == 200_000
    assert hub_server.bytes_sent[NAME] == 200_000


def changing(server: Hub, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's file become other bytes when half of it was sent."""
    server.faults.append(Fault(kind="cut", value=5, times=1))
    # Called while it would wait for the next try.
    monkeypatch.setattr(
        transfer, "wait_or_give_up", lambda *_: (server.folder / REPOSITORY / NAME).write_bytes(data)
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_that_changes_on_the_server_is_never_mixed(
    hub_server: Hub, patience: Patience, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(hub_server, (hub_server.folder / REPOSITORY / NAME).read_bytes()[::-1], monkeypatch)
    with pytest.raises(DownloadError):
        pull_one(hub_server, source, patience)
    assert not named_files(tmp_path)


def test_a_file_that_becomes_the_right_one_is_begun_again(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = (hub_server.folder / REPOSITORY / NAME).read_bytes()
    sha256 = hashlib.sha256(right).hexdigest()
    (hub_server.folder / REPOSITORY / NAME).write_bytes(right[::-1])
    changing(hub_server, right, monkeypatch)
    url = f"{hub_server.endpoint}/files/{REPOSITORY}/{NAME}"
    assert hub.pull(url, sha256=sha256, patience=patience).path.read_bytes() == right
    assert hub_server.downloads(NAME) == 2


def test_a_change_does_not_use_up_the_second_try(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = (hub_server.folder / REPOSITORY / NAME).read_bytes()
    sha256 = hashlib.sha256(right).hexdigest()
    (hub_server.folder / REPOSITORY / NAME).write_bytes(right[::-1])
    changing(hub_server, right, monkeypatch)
    # A server that takes no notice of If-Range: its ETag tells. Then wrong bytes, once.
    hub_server.faults += [Fault(kind="no_if_range", times=1), Fault(kind="wrong_bytes", times=1)]
    url = f"{hub_server.endpoint}/files/{REPOSITORY}/{NAME}"
    assert hub.pull(url, sha256=sha256, patience=patience).path.read_bytes() == right


@pytest.mark.parametrize("length", [1000, 200_000, 300_000])
@pytest.mark.parametrize("source", SOURCES)
def test_a_damaged_part_is_thrown_away(
    hub_server: Hub, patience: Patience, tmp_path: Path, source: str, length: int
) -> None:
    hub_server.faults.append(Fault(kind="cut", value=5, times=1))
    with pytest.raises(DownloadError):
        pull_one(hub_server, source, dataclasses.replace(patience, tries=1))
    (part,) = [*cache_root().rglob("*.part"), *(tmp_path / "huggingface").rglob("*.incomplete")]
    part.write_bytes(b"z" * length)
    check(hub_server, source, patience, tmp_path, None)
    assert not part.exists()


@pytest.mark.parametrize("source", SOURCES)
def test_a_server_without_ranges_begins_again(hub_server: Hub, patience: Patience, source: str) -> None:
    hub_server.faults += [Fault(kind="cut", value=4, times=1), Fault(kind="no_ranges")]
    assert pull_one(hub_server, source, patience).size_bytes == 200_000
    assert hub_server.bytes_sent[NAME] == 80_000 + 200_000


def test_wrong_bytes_name_both_digests_and_the_source(hub_server: Hub, patience: Patience) -> None:
    hub_server.faults.append(Fault(kind="wrong_bytes"))
    with pytest.raises(DigestError) as raised:
        pull_one(hub_server, "url", patience)
    stated = next(file.sha256 for file in hub_server.files(REPOSITORY) or () if file.name == NAME)
    assert stated in raised.value.message
    assert hub_server.endpoint in raised.value.message
    assert len([word for word in raised.value.message.split() if len(word) == 64]) == 2
    assert hub_server.downloads(NAME) == 2  # once more from the start, no more
