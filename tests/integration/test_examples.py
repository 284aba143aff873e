from __future__ import annotations

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
    "embeddings.py": (["{embedding}", "Which city?", "{notes}"], "Athens is the capital of Greece."),
    "rag.py": (["{chat}", "{embedding}", "{reranker}", "What is 12 + 30?", "{notes}"], "answer: "),
    "tools.py": (["{chat}"], "call: get_weather {'city': 'Vienna'}"),
    "translator.py": (["{chat}", "dog", "German", "French"], "French: "),
}


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


def test_every_example_is_expected() -> None:
    assert {path.name for path in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(path: Path, files: dict[str, Path]) -> None:
    arguments, expected = EXPECTED[path.name]
    command = [sys.executable, str(path), *(argument.format(**files) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert expected in result.stdout
    assert len(path.read_text().splitlines()) < 60
