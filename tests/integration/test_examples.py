from __future__ import annotations

import importlib.util
import json
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.convert import convert_checkpoint
from tests import pooled_checkpoints

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
# Arguments, {name} standing for a file of the fixture below; what is printed.
EXPECTED = {
    "async_chat.py": (["{chat}"], "answer: no answer within 0.01 s"),
    "chat.py": (["{chat}"], "prompt tokens were cached"),
    "extraction.py": (["{chat}", "Max is 30 years old."], "Person(name="),
    "embeddings.py": (["{embedding}", "Which city?", "{notes}"], "Athens is the capital of Greece."),
    "langchain_chat.py": (["{chat}"], "answer: It is 21 degrees and sunny in Vienna."),
    "llamaindex_rag.py": (["{chat}", "{embedding}", "What is 12 + 30?", "{notes}"], "): 12 + 30 is 42."),
    "rag.py": (["{chat}", "{embedding}", "{reranker}", "What is 12 + 30?", "{notes}"], "answer: "),
    "tools.py": (["{chat}"], "call: get_weather {'city': 'Vienna'}"),
    "translator.py": (["{chat}", "dog", "German", "French"], "French: "),
}

# Runs until it is told to end; tests/unit/test_unix_service.py has the rest.
SERVICE = "unix_service.py"

# What an example is about and a development environment may lack.
NEEDED = {"langchain_chat.py": "langchain_core", "llamaindex_rag.py": "llama_index"}
# Frameworks swallow the errors of their own telemetry: what they tried is told on stderr.
WITHOUT_NETWORK = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        sys.stderr.write(f"{event}{arguments}\\n")
        raise PermissionError("no network here")
sys.addaudithook(refuse)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def files(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model; an embedding model and a reranker, with random weights; texts."""
    folder = tmp_path_factory.mktemp("examples")
    files = {name: folder / f"{name}.gguf" for name in ("embedding", "reranker")}
    convert_checkpoint(pooled_checkpoints.write_embedding_model(folder / "Embedding"), files["embedding"])
    convert_checkpoint(pooled_checkpoints.write_reranker(folder / "Qwen3-Reranker"), files["reranker"])
    notes = folder / "notes.txt"
    notes.write_text("Athens is the capital of Greece.\n\nBread is baked.\n\n12 + 30 is 42.\n")
    return {**files, "chat": tiny_bf16, "notes": notes}


def test_the_network_is_refused() -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    command = [
        sys.executable,
        "-c",
        WITHOUT_NETWORK.replace('runpy.run_path(sys.argv[0], run_name="__main__")', code),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stderr.startswith("socket.getaddrinfo")
    assert "no network here" in result.stderr


def test_every_example_is_expected() -> None:
    assert {path.name for path in EXAMPLES} == set(EXPECTED) | {SERVICE}


def test_the_service_answers_and_ends_when_it_is_told_to(files: dict[str, Path], tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / SERVICE
    address = tmp_path / "socket"
    process = subprocess.Popen(
        [sys.executable, str(example), str(files["chat"]), str(address)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready: {address}\n"
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(120)
            client.connect(str(address))
            with client.makefile("rwb") as lines:
                for request in (b'{"prompt": "What is 12 + 30?"}\n', b"{\n"):
                    lines.write(request)
                    lines.flush()
                    found = json.loads(lines.readline())
                    assert list(found) == (["error"] if request == b"{\n" else ["text", "finish_reason"])
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert len(example.read_text().splitlines()) < 60


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.name != SERVICE], ids=lambda path: path.name
)
def test_example_runs_without_a_network_and_is_short(path: Path, files: dict[str, Path]) -> None:
    if path.name in NEEDED and importlib.util.find_spec(NEEDED[path.name]) is None:
        pytest.skip(f"{NEEDED[path.name]} is not installed: pip install qwen-edge[ecosystem]")
    arguments, expected = EXPECTED[path.name]
    command = [
        sys.executable,
        "-c",
        WITHOUT_NETWORK,
        str(path),
        *(each.format(**files) for each in arguments),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert expected in result.stdout
    assert len(path.read_text().splitlines()) < 60
