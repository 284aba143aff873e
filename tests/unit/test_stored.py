"""What is kept, what it takes, and removing it."""

from __future__ import annotations

import io
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from huggingface_hub import constants

from qwen_edge import paths
from qwen_edge.cli.main import main
from qwen_edge.errors import ConfigError, ModelNotFoundError, NoFolderError
from qwen_edge.hub.hf_settings import cache_folder
from qwen_edge.hub.local import checkpoints_folder, locate
from qwen_edge.manifest import FileRecord, Manifest, Origin, manifest_path, write_manifest
from qwen_edge.removal import remove, things_named, things_of_kind
from qwen_edge.stored import DiskUsage, Stored, stored_files, stored_models

Capture = pytest.CaptureFixture[str]
KIB = 1024
COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def _own_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builds of this machine, which other tests use, are not counted."""
    monkeypatch.delenv("QWEN_EDGE_NATIVE", raising=False)


def put(path: Path, size_bytes: int = 64 * KIB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size_bytes))
    return path


def pulled(name: str = "Qwen3-0.6B-Q8_0.gguf", folder: str = "Qwen--Qwen3-0.6B-GGUF") -> Path:
    path = put(paths.models_folder() / folder / name)
    record = FileRecord(name=path.name, size_bytes=path.stat().st_size, sha256="b" * 64)
    write_manifest(path, Manifest(action="pull", artefact=record, origin=Origin(kind="huggingface")))
    return path


def checkpoint() -> Path:
    folder = checkpoints_folder() / "Qwen--Qwen3-0.6B" / "master"
    record = FileRecord.of(put(folder / "model.safetensors"), folder)
    put(folder / "config.json", 10)
    write_manifest(
        folder, Manifest(action="pull", artefact=None, origin=Origin(kind="modelscope"), inputs=(record,))
    )
    return folder


def cached(repository: str, *names: str) -> Path:
    """Lay a repository into the cache of Hugging Face, as its client does."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for index, name in enumerate(names):
        blob = put(folder / "blobs" / f"{index:064x}")
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


def names(stored: list[Stored]) -> list[tuple[str, str]]:
    return [(item.kind, item.name) for item in stored]


def test_disk_usage_counts_what_has_two_names_once(tmp_path: Path) -> None:
    first = put(tmp_path / "a" / "first")
    outside = put(tmp_path / "outside")
    os.link(first, tmp_path / "a" / "second")
    (tmp_path / "a" / "link").symlink_to(outside)
    size = DiskUsage().of(tmp_path / "a")
    assert 64 * KIB <= size < 100 * KIB
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(10 << 20)
    assert DiskUsage().of(sparse) < 1 << 20
    assert DiskUsage().of(tmp_path / "absent") == 0


def test_every_byte_is_accounted_for() -> None:
    root = paths.cache_root()
    pulled()
    checkpoint()
    put(root / "partial" / f"{'c' * 64}.part")
    put(root / "native" / "0123" / "build.json")
    put(root / "native" / "0123.log")
    put(root / "native" / "building-0123" / "objects")
    put(root / "prefixes" / "d.prefix")
    put(root / "probe" / "e.json", 10)
    put(root / "device" / "bandwidth-f.json", 10)
    put(root / "history" / "chat", 10)
    put(root / "sha256.json", 10)
    put(root / "models" / "notes.txt", 10)
    put(root / "models" / ".x.gguf.999999999.abc.part")
    put(root / "manifests" / "huggingface" / "A--B" / COMMIT / "manifest.json", 10)
    stored = stored_files()
    files = [path for path in root.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_blocks * 512 for path in files)
    folders = sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_dir())
    assert on_disk <= sum(item.size_bytes for item in stored) <= on_disk + folders
    assert {item.kind for item in stored} == {
        "model", "checkpoint", "partial", "native", "prefix-cache", "history", "records", "other",
    }  # fmt: skip
    for item in stored:
        remove(item)
    assert [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_names_are_those_that_rm_takes() -> None:
    pulled()
    pulled("Llama-Guard-Q4_0.gguf", "someone--Llama-Guard-GGUF")
    checkpoint()
    cached("Qwen/Qwen3-1.7B-GGUF", "Qwen3-1.7B-Q8_0.gguf")
    cached("stranger/unknown-to-us", "model.safetensors")
    stored = stored_models()
    assert names(stored) == [
        ("checkpoint", "qwen3-0.6b"),
        ("model", "qwen3-0.6b@Q8_0"),
        ("repository", "qwen3-1.7b@Q8_0"),
        ("model", "someone/Llama-Guard-GGUF@Q4_0"),
    ]
    for item in stored:
        assert item in things_named(item.remove, stored)


def test_a_repository_of_someone_counts_once_it_was_pulled() -> None:
    cached("someone/model", "model.safetensors")
    assert stored_models() == []
    put(paths.cache_root() / "manifests" / "huggingface" / "someone--model" / COMMIT / "manifest.json", 10)
    (item,) = stored_models()
    assert (item.name, item.types) == ("someone/model", ("HF",))


def test_a_type_means_one_file_and_no_type_all() -> None:
    first, second, folder = pulled(), pulled("Qwen3-0.6B-Q4_0.gguf"), checkpoint()
    stored = stored_models()
    assert [item.path for item in things_named("qwen3-0.6b@q4_0", stored)] == [second]
    assert {item.path for item in things_named("Qwen3 0.6B", stored)} == {first, second, folder}
    assert {item.path for item in things_named("Qwen/Qwen3-0.6B", stored)} == {folder}
    with pytest.raises(
        ModelNotFoundError, match=r"(?s)qwen3-0.6b@q6_k is not .*Here: qwen3-0.6b, qwen3-0.6b@Q4_0"
    ):
        things_named("qwen3-0.6b@q6_k", stored)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean qwen3-0\.6b\?"):
        things_named("qwn3-0.6b", stored)


def test_a_model_goes_with_its_manifest_and_empty_folder() -> None:
    path, other = pulled(), pulled("Qwen3-0.6B-Q4_0.gguf")
    (item,) = things_named(str(path), stored_models())
    remove(item)
    assert sorted(path.parent.iterdir()) == sorted([other, manifest_path(other)])
    (item,) = stored_models()
    remove(item)
    assert not path.parent.exists()
    assert paths.models_folder().is_dir()


def test_the_cache_of_hugging_face_goes_its_own_way() -> None:
    folder = cached("Qwen/Qwen3-1.7B-GGUF", "Qwen3-1.7B-Q8_0.gguf", "Qwen3-1.7B-Q4_0.gguf")
    other = cached("someone/else", "model.safetensors")
    put(paths.cache_root() / "manifests" / "huggingface" / "Qwen--Qwen3-1.7B-GGUF" / COMMIT / "m.json", 10)
    stored = stored_models()
    with pytest.raises(
        ConfigError, match=r"(?s)together with Q4_0 and Q8_0.*qwen-edge rm Qwen/Qwen3-1.7B-GGUF"
    ):
        things_named("qwen3-1.7b@q8_0", stored)
    (item,) = things_named("Qwen/Qwen3-1.7B-GGUF", stored)
    assert item.size_bytes >= 128 * KIB
    remove(item)
    assert not folder.exists()
    assert not item.extras[0].exists()
    assert other.exists()


def test_files_of_other_people_are_left_alone(tmp_path: Path) -> None:
    own = put(tmp_path / "mine.gguf")
    with pytest.raises(ConfigError, match="so it is left alone"):
        things_named(str(own), stored_files())
    with pytest.raises(ModelNotFoundError, match=r"no file .*absent\.gguf"):
        things_named(str(tmp_path / "absent.gguf"), stored_files())
    folder = checkpoint()
    with pytest.raises(ConfigError, match=r"is a part of qwen3-0\.6b"):
        things_named(str(folder / "config.json"), stored_files())


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    own = put(tmp_path / "mine.gguf")
    link = paths.models_folder() / "linked-Q8_0.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(own)
    remove(things_named(str(link), stored_files())[0])
    assert not link.is_symlink()
    assert own.exists()


def test_no_way_leads_out_of_our_folders(tmp_path: Path) -> None:
    own = put(tmp_path / "folder" / "mine-Q8_0.gguf")
    (paths.cache_root() / "models").mkdir(parents=True)
    (paths.models_folder() / "Qwen--Linked").symlink_to(own.parent)
    inside = paths.models_folder() / "Qwen--Linked" / own.name
    item = Stored(kind="model", name="x", path=inside, size_bytes=1, remove="x")
    with pytest.raises(ConfigError, match="outside the folders of qwen-edge"):
        remove(item)
    assert own.exists()
    for found in stored_files():
        remove(found)
    assert own.exists()


def test_a_models_folder_that_is_a_link_is_ours(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    paths.cache_root().mkdir(parents=True, exist_ok=True)
    paths.models_folder().symlink_to(tmp_path / "large disk")
    path = pulled()
    (item,) = stored_models()
    remove(item)
    assert not path.exists()


def test_what_another_process_fetches_is_refused() -> None:
    path = pulled()
    partial = paths.cache_root() / "partial"
    partial.mkdir()
    (item,) = stored_models()
    with FileLock(partial / f"{'b' * 64}.lock"), pytest.raises(ConfigError, match="another process"):
        remove(item)
    assert path.exists()
    part = put(partial / f"{'c' * 64}.part")
    (unfinished,) = things_of_kind("partial", stored_files())
    with FileLock(part.with_suffix(".lock")), pytest.raises(ConfigError, match="another process"):
        remove(unfinished)
    assert part.exists()
    remove(unfinished)
    assert not part.exists()


def test_a_checkpoint_in_the_making_is_refused() -> None:
    folder = checkpoint()
    manifest_path(folder).unlink()
    (paths.cache_root() / "partial").mkdir()
    with FileLock(paths.cache_root() / "partial" / "any.lock"):
        (item,) = stored_models()
        with pytest.raises(ConfigError, match="another process"):
            remove(item)
    assert folder.exists()


def test_unfinished_downloads_of_the_hugging_face_cache_are_found() -> None:
    folder = cached("someone/else", "model.safetensors")
    part = put(folder / "blobs" / f"{'d' * 64}.qwen-edge.incomplete")
    (item,) = things_of_kind("partial", stored_files())
    remove(item)
    assert not part.exists()
    assert folder.exists()


def test_what_a_running_process_writes_is_not_left_behind() -> None:
    root = paths.models_folder()
    put(root / f".a.gguf.{os.getpid()}.xyz.part")
    assert things_of_kind("partial", stored_files()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_is_said() -> None:
    path = pulled()
    (item,) = stored_models()
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(ConfigError, match="cannot be removed"):
            remove(item)
    finally:
        path.parent.chmod(0o755)


def test_a_failing_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    path = pulled()
    (item,) = stored_models()

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ConfigError, match=r"cannot be removed: Read-only file system"):
        remove(item)
    assert path.exists()


def test_the_build_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_edge import stored

    used = put(paths.cache_root() / "native" / "0123" / "llama_cpp" / "lib" / "libllama.so").parent
    old = put(paths.cache_root() / "native" / "4567" / "llama_cpp" / "lib" / "libllama.so").parents[2]
    monkeypatch.setattr(stored, "library_folder", lambda: used)
    assert [item.path for item in things_of_kind("native", stored_files())] == [old]


# The commands


def test_rm_shows_and_asks_at_a_terminal_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pulled()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["rm", "qwen3-0.6b"]) == 1
    out, err = capsys.readouterr()
    assert str(path) in err
    assert err.endswith("error: nothing was removed: there is no terminal to ask at\n  Say it with --yes.\n")
    assert main(["rm", "qwen3-0.6b", "--dry-run"]) == 0
    assert "would be freed" in capsys.readouterr().err
    assert path.exists()
    assert main(["rm", "qwen3-0.6b@Q8_0", "--yes", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    (removed,) = json.loads(out)["removed"]
    assert (removed["path"], removed["extras"]) == (str(path), [str(manifest_path(path))])
    assert "freed." in err
    assert not path.exists()


def test_rm_takes_several_options_at_once(capsys: Capture) -> None:
    root = paths.cache_root()
    first, second = put(root / "prefixes" / "a.prefix"), put(root / "partial" / "b.part")
    assert main(["rm", "--prefix-cache", "--partial", "-y"]) == 0
    assert not first.exists()
    assert not second.exists()
    assert main(["rm", "--prefix-cache", "-y"]) == 0
    assert "There is nothing of that." in capsys.readouterr().err
    assert main(["rm"]) == 2


def test_rm_goes_on_behind_what_is_refused(capsys: Capture) -> None:
    partial = paths.cache_root() / "partial"
    held, free = put(partial / "a.part"), put(partial / "b.part")
    with FileLock(held.with_suffix(".lock")):
        assert main(["rm", "--partial", "--yes"]) == 1
    assert "being written by another process" in capsys.readouterr().err
    assert held.exists()
    assert not free.exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_rm_asks_at_a_terminal(answer: str, code: int) -> None:
    path = pulled()
    terminal, other_end = pty.openpty()
    try:
        os.write(terminal, f"{answer}\n".encode())
        result = subprocess.run(
            [sys.executable, "-m", "qwen_edge", "rm", "qwen3-0.6b"],
            stdin=other_end,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(terminal)
        os.close(other_end)
    assert (result.returncode, path.exists()) == (code, bool(code)), result.stderr
    assert "Remove it, " in result.stderr


def document(capture: Capture, *args: str) -> Any:
    assert main([*args, "--format", "json"]) == 0
    return json.loads(capture.readouterr().out)


def test_du_as_json_and_for_people(capsys: Capture) -> None:
    path = pulled()
    put(paths.cache_root() / "prefixes" / "a.prefix")
    found = document(capsys, "du")
    assert found["total_bytes"] == sum(item["size_bytes"] for item in found["stored"]) > 128 * KIB
    assert found["stored"][0]["path"] == str(path)
    assert [item["remove"] for item in found["stored"]] == ["qwen3-0.6b@Q8_0", "--prefix-cache"]
    assert main(["du"]) == 0
    out, err = capsys.readouterr()
    assert "qwen3-0.6b@Q8_0" in out
    assert str(paths.cache_root()) in err


def test_no_home_for_the_cache_of_hugging_face(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    path = pulled()
    assert [item.path for item in stored_files()] == [path]
    assert locate("qwen3-0.6b") == path
    (item,) = stored_models()
    remove(item)
    with pytest.raises(NoFolderError, match="HF_HOME"):
        cache_folder()


def test_du_of_nothing(capsys: Capture) -> None:
    assert document(capsys, "du")["stored"] == []


def test_list_local_and_what_has_no_row(capsys: Capture) -> None:
    assert main(["list", "--local"]) == 0
    assert "Nothing is here yet" in capsys.readouterr().err
    pulled()
    other = pulled("Llama-Guard-Q4_0.gguf", "someone--Llama-Guard-GGUF")
    assert [item["name"] for item in document(capsys, "list", "--local", "guard")["models"]] == [
        "someone/Llama-Guard-GGUF@Q4_0"
    ]
    assert [item["path"] for item in document(capsys, "list")["others"]] == [str(other)]
    assert main(["list", "--local"]) == 0
    out = capsys.readouterr().out
    assert str(other) in out
    assert "qwen3-0.6b@Q8_0" in out
    assert main(["list", "qwen3-0.6b"]) == 0
    assert "Here too: someone/Llama-Guard-GGUF@Q4_0." in capsys.readouterr().err
