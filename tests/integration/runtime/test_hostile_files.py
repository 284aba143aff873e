"""Damaged model files through the engine, in a child process: our errors or a model that runs, never a crash."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gguf
import pytest

from qwen_edge import load
from qwen_edge.errors import GGUFError
from qwen_edge.gguf_header import read_header

N_RANDOM = 200

# Reads changes (lists of [offset, bytes in hex]) as JSON lines; writes how each load ended.
CHILD = """
import json, sys
from pathlib import Path
from qwen_edge.config import LoadConfig
from qwen_edge.engines.llama import LlamaEngine
from qwen_edge.errors import QwenEdgeError
base, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
config = LoadConfig(n_ctx=64, n_batch=16, n_threads=1, safe_kernels=False)
for line in sys.stdin:
    content = bytearray(base)
    for offset, data in json.loads(line):
        data = bytes.fromhex(data)
        content[offset : offset + len(data)] = data
    target.write_bytes(content)
    print("begin", line.strip(), flush=True)
    try:
        engine = LlamaEngine(target, config)
        try:
            context = engine.new_context()
            context.append([token % engine.info.n_vocab for token in range(12)])
            context.append([1])
            engine.tokenize("Hello <|im_start|> world")
            engine.token_bytes(1)
        finally:
            engine.close()
        print("runs", flush=True)
    except QwenEdgeError as error:
        print(type(error).__name__, flush=True)
    except MemoryError:
        print("MemoryError", flush=True)
"""


def outcomes(path: Path, scratch: Path, changes: list[list[tuple[int, bytes]]]) -> Counter[str]:
    lines = [json.dumps([[offset, data.hex()] for offset, data in each]) for each in changes]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(scratch / "changed.gguf")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout.splitlines()
    assert done.returncode == 0, f"{printed[-1]}\n{done.stderr[-2000:]}"
    found = Counter(line for line in printed if not line.startswith("begin"))
    assert found.total() == len(changes)
    return found


def test_every_value_of_the_metadata_at_its_limits(tiny_bf16: Path, tmp_path: Path) -> None:
    numbers = [0, 1, 3, 33, 513, 100_000, 2**31 - 1, 2**31, 2**32 - 1]
    floats = [0.0, -1.0, float("inf"), float("nan")]
    evil = {
        gguf.GGUFValueType.UINT32: [struct.pack("<I", number) for number in numbers],
        gguf.GGUFValueType.INT32: [struct.pack("<I", number) for number in numbers],
        gguf.GGUFValueType.FLOAT32: [struct.pack("<f", number) for number in floats],
        gguf.GGUFValueType.BOOL: [b"\x00", b"\x01", b"\xff"],
    }
    changes = []
    for key, field in gguf.GGUFReader(tiny_bf16).fields.items():
        if not key.startswith("GGUF.") and field.types[0] in evil:
            start = field.offset + 8 + len(key) + 4
            changes += [[(start, data)] for data in evil[field.types[0]]]
    found = outcomes(tiny_bf16, tmp_path, changes)
    assert set(found) <= {"runs", "GGUFError", "NativeError", "ConfigError", "UnsupportedError"}
    assert found["runs"] > 10
    assert found["GGUFError"] > 10


@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes_of_the_header(seed: int, tiny_bf16: Path, tmp_path: Path) -> None:
    header_bytes = read_header(tiny_bf16).header_bytes
    values_bytes = read_header(tiny_bf16).arrays["tokenizer.ggml.tokens"].start
    numbers = [0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
    chance = random.Random(seed)
    changes = []
    for _ in range(N_RANDOM):
        # The values, the table of tensors at the end, or anywhere.
        low, high = chance.choice([(8, values_bytes), (header_bytes - 4500, header_bytes), (8, header_bytes)])
        changes.append(
            [
                (
                    chance.randrange(low, high - 8),
                    chance.choice(
                        [bytes([chance.randrange(256)]), chance.choice(numbers).to_bytes(8, "little")]
                    ),
                )
                for _ in range(chance.choice([1, 1, 3]))
            ]
        )
    found = outcomes(tiny_bf16, tmp_path, changes)
    assert set(found) <= {"runs", "GGUFError", "NativeError", "UnsupportedError"}


def test_a_file_that_llama_cpp_would_die_of_is_named(tiny_bf16: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_bf16.read_bytes())
    key = b"qwen3.block_count"
    start = content.index(key) + len(key) + 4
    content[start : start + 4] = struct.pack("<I", 0)
    path = tmp_path / "layers.gguf"
    path.write_bytes(content)
    # Once with the probe that a first load runs, once without.
    for safe_kernels in (None, False):
        with pytest.raises(GGUFError, match="block_count is 0, expected 1 to 512"):
            load(path, safe_kernels=safe_kernels)
