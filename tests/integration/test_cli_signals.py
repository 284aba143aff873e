"""Ctrl-C and SIGTERM in each command: it ends in words, leaves nothing half-written and no child."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from signalled import end_after

from qwen_edge import paths
from qwen_edge.cli.main import main

CHECKPOINT = Path(__file__).parents[2] / "examples" / "tiny-qwen3"
COMMANDS: dict[str, list[str]] = {
    "help": ["--help"],
    "setup": ["setup", "--print-plan"],
    "list": ["list"],
    "du": ["du"],
    "rm": ["rm", "--records", "--yes"],
    "convert": ["convert", str(CHECKPOINT), "-o", "made.gguf"],
    "export": ["convert", str(CHECKPOINT), "--to", "onnx", "--weights", "int4", "-o", "made-onnx"],
    "quantize": ["quantize", "MODEL", "-t", "Q8_0", "-o", "made.gguf"],
    "verify": ["verify", "MODEL", "--against", str(CHECKPOINT), "--threads", "1"],
    "run": ["run", "MODEL", "word " * 1500, "--thinking", "on", "--threads", "1"],
    "bench": ["bench", "MODEL", "--threads", "1"],
    "demo": ["demo"],
}
MOMENTS = [(signal.SIGINT, 0.0), (signal.SIGINT, 0.05), (signal.SIGINT, 0.4), (signal.SIGTERM, 0.4)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_command_in_words(name: str, tiny_bf16: Path, tmp_path: Path) -> None:
    args = [str(tiny_bf16) if arg == "MODEL" else arg for arg in COMMANDS[name]]
    for index, (number, delay_s) in enumerate(MOMENTS):
        folder = tmp_path / str(index)
        folder.mkdir()
        ending = end_after(delay_s, args, number=number, cwd=folder)
        # One that was quicker has done its work; while Python leaves, the signal itself ends it.
        assert ending.code in (128 + number, -number, 0), ending
        assert "Traceback" not in ending.stderr, ending
        assert "ignored" not in ending.stderr, ending
        if ending.code > 0:
            assert ending.stderr.splitlines()[-1] in ("interrupted", "terminated"), ending
        assert not ending.orphans, ending
        unfinished = [path for path in folder.rglob("*") if path.name.endswith(".part")]
        assert not unfinished, ending


class _Stalling(BaseHTTPRequestHandler):
    """Sends the first half of a file and then nothing more."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "3000000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with contextlib.suppress(OSError):
            self.wfile.write(b"x" * 1_500_000)
            self.connection.recv(1)  # until the other side has gone

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def stalling_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stalling) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/some-Q8_0.gguf"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_keeps_what_it_has(number: signal.Signals, stalling_server: str) -> None:
    sha256 = hashlib.sha256(b"never to come").hexdigest()
    args = ["pull", stalling_server, "--sha256", sha256]
    ending = end_after(1.5, args, number=number, env={"HF_HUB_OFFLINE": "0"})
    assert ending.code == 128 + number, ending
    assert ending.stderr.splitlines()[-1] in ("interrupted", "terminated")
    assert "Traceback" not in ending.stderr
    (part,) = (paths.cache_root() / "partial").glob("*.part")
    assert part.read_bytes() == b"x" * part.stat().st_size
    assert not list(paths.models_folder().rglob("*.gguf"))


def test_rm_leaves_a_download_alone(stalling_server: str) -> None:
    command = [sys.executable, "-m", "qwen_edge", "pull", stalling_server, "--sha256", "0" * 64]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "0"}
    ) as pull:
        try:
            part = paths.cache_root() / "partial" / f"{'0' * 64}.part"
            while not part.exists() or not part.stat().st_size:
                assert pull.poll() is None
                time.sleep(0.05)
            assert main(["rm", "--partial", "--yes"]) == 1
            assert part.exists()
        finally:
            pull.terminate()
    assert main(["rm", "--partial", "--yes"]) == 0
    assert not part.exists()
