"""`qwen-edge pull` as a process: killed at any moment, twice at once, on a disk that is full."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

REPOSITORY = "Qwen/Qwen3-0.6B"
SIZES = {"model-00001-of-00002.safetensors": 1_600_000, "model-00002-of-00002.safetensors": 900_000,
         "config.json": 700, "tokenizer.json": 40_000}  # fmt: skip
TOTAL_BYTES = sum(SIZES.values())
KILLS = 20
ROOT = Path(__file__).parents[3]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / REPOSITORY
    folder.mkdir(parents=True)
    for name, size_bytes in SIZES.items():
        (folder / name).write_bytes(random.Random(name).randbytes(size_bytes))
    return folder


def start_pull(
    endpoint: str, caches: Path, source: str, preexec: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(caches / "huggingface"),
        "MODELSCOPE_ENDPOINT": endpoint,
        "QWEN_EDGE_CACHE": str(caches / "qwen-edge"),
    }
    command = [sys.executable, "-m", "qwen_edge", "pull", "qwen3-0.6b", "--source", source]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
    )


def finish(process: subprocess.Popen[str]) -> tuple[Path, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return Path(out.strip()), err


def check_named_files(folder: Path, repository: Path) -> int:
    """Check every file that has the name of one; return how many there are."""
    named = [path for path in folder.rglob("*") if path.name in SIZES and path.is_file()]
    for path in named:
        assert path.read_bytes() == (repository / path.name).read_bytes(), path
    blobs = [path for path in folder.rglob("blobs/*") if not path.name.endswith(".incomplete")]
    right = {(repository / name).read_bytes() for name in SIZES}
    assert all(path.read_bytes() in right for path in blobs)
    return len(named)


def test_killed_at_any_moment(
    repository: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    moments = random.Random(20)
    fetched_again_bytes = []
    with Hub(tmp_path / "hub") as hub:
        for number in range(KILLS):
            caches = tmp_path / f"caches-{number}"
            source = ("huggingface", "modelscope")[number % 2]
            hub.bytes_sent.clear()
            hub.rate = 8_000_000
            process = start_pull(hub.endpoint, caches, source)
            # The last tenth of the moments lies behind the last byte, where files are checked and named.
            moment = moments.uniform(0, 1.1)
            while sum(hub.bytes_sent.values()) < min(moment, 1) * TOTAL_BYTES and process.poll() is None:
                time.sleep(0.001)
            time.sleep(max(0, moment - 1) * 0.5)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            check_named_files(caches, repository)
            hub.rate = 0
            path, _ = finish(start_pull(hub.endpoint, caches, source))
            assert check_named_files(path, repository) == len(SIZES)
            assert not list(caches.rglob("*.part")) + list(caches.rglob("*.incomplete"))
            fetched_again_bytes.append(sum(hub.bytes_sent.values()) - TOTAL_BYTES)
    record_property("kills", KILLS)
    record_property("most_bytes_fetched_twice", max(fetched_again_bytes))
    # What was on its way to a process that died is lost, a file that was begun is not.
    assert sum(fetched_again_bytes) / KILLS < TOTAL_BYTES / 2


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_two_processes_fetch_once(repository: Path, tmp_path: Path, source: str) -> None:
    with Hub(tmp_path / "hub", rate=2_000_000) as hub:
        processes = [start_pull(hub.endpoint, tmp_path / "caches", source) for _ in range(2)]
        results = [finish(process) for process in processes]
        assert hub.bytes_sent == SIZES
    assert results[0][0] == results[1][0]
    assert check_named_files(results[0][0], repository) == len(SIZES)
    assert any("waiting for it" in err for _, err in results)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_disk_that_takes_no_more(repository: Path, tmp_path: Path, source: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    with Hub(tmp_path / "hub") as hub:
        process = start_pull(hub.endpoint, tmp_path / "caches", source, limit)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "is full" in err
        assert "goes on from there" in err
        check_named_files(tmp_path / "caches", repository)
        path, _ = finish(start_pull(hub.endpoint, tmp_path / "caches", source))
    assert check_named_files(path, repository) == len(SIZES)


def test_the_stand_in_hub_as_a_program(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.hub_server",
        str(tmp_path / "hub"),
        "--fault",
        "cut:file:*.json:1:5",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            path, _ = finish(start_pull(program.stdout.readline().strip(), tmp_path / "caches", "auto"))
            assert check_named_files(path, repository) == len(SIZES)
        finally:
            program.kill()


def test_the_network_is_not_there(tmp_path: Path) -> None:
    start = time.monotonic()
    process = start_pull("http://127.0.0.1:9", tmp_path / "caches", "auto")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "does not answer" in err
    assert time.monotonic() - start < 5
