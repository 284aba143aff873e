"""What the child reads from llama.cpp's log, and how the parent takes the child's end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import NativeCrashError, NativeMissingError
from qwen_edge.native import child
from qwen_edge.native.quantizer import _LogReader, run_quantizer

# Fragments as llama.cpp 0c1e570 logs them: a line comes in several calls.
DRY_RUN = [
    "llama_model_loader: - type  f32:   25 tensors\n",
    "warning: blk.0.attn_k.weight                  - ncols    896 not divisible by 256 (required for type    q4_K) ",
    "-> falling back to    q5_0\n",
    "[   1/  68] output_norm.weight                   - [   256,      1,      1,      1], type =    f32, ",
    "size =    0.001 MiB\n",
    "[   2/  68] token_embd.weight                    - [   256,   4096,      1,      1], type =   bf16, ",
    "size =     2.00 MiB ->     0.82 MiB (q6_K)\n",
    "llama_model_quantize_impl: WARNING: dry run completed successfully, but actually completing this quantization "
    "will require an imatrix!\n",
]
REAL_RUN = [
    "[   2/  68] token_embd.weight                    - [   256,   4096,      1,      1], type =   bf16, ",
    "converting to q6_K .. ",
    "size =     2.00 MiB ->     0.82 MiB\n",
    "[   3/  68] blk.0.ffn_up.weight                  - [   256,    768,      1,      1], type =   bf16, ",
    "converting to q4_K .. ",
    "llama_model_quantize: failed to quantize: basic_ios::clear: iostream error\n",
]


def read(fragments: list[str]) -> tuple[list[dict[str, Any]], str]:
    events: list[dict[str, Any]] = []
    reader = _LogReader(events.append)
    for fragment in fragments:
        reader.feed(fragment)
    return events, reader.failure


def test_dry_run_log() -> None:
    events, failure = read(DRY_RUN)
    assert events == [
        {"fallback": "blk.0.attn_k.weight", "wanted": "Q4_K", "used": "Q5_0"},
        {"tensor": "output_norm.weight", "type": "F32"},
        {"tensor": "token_embd.weight", "type": "Q6_K"},
        {"needs_imatrix": True},
    ]
    assert failure == ""


def test_real_run_log() -> None:
    events, failure = read(REAL_RUN)
    assert events == [{"tensor": "token_embd.weight", "type": "Q6_K"}]
    assert failure == "basic_ios::clear: iostream error"


def test_fragments_may_be_cut_anywhere() -> None:
    assert read(list("".join(DRY_RUN))) == read(DRY_RUN)


ChildOf = Callable[[str], None]


@pytest.fixture
def child_is(monkeypatch: pytest.MonkeyPatch) -> ChildOf:
    """Replace the quantizer's child by a few lines of Python."""

    def replace(code: str) -> None:
        def start(_module: str, _args: list[str]) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

        monkeypatch.setattr(child, "start_child", start)

    return replace


def test_events_become_an_outcome(child_is: ChildOf) -> None:
    child_is(
        """if True:
        print('noise of a library')
        print('{"tensor": "a", "type": "Q4_0"}')
        print('{"fallback": "a", "wanted": "Q4_K", "used": "Q4_0"}')
        print('{"done": true, "peak_memory_bytes": 5}')
        """
    )
    seen: list[str] = []
    outcome = run_quantizer(Path("x"), None, 2, n_threads=1, on_tensor=seen.append)
    assert (outcome.tensor_types, seen, outcome.peak_memory_bytes) == ({"a": "Q4_0"}, ["a"], 5)
    assert outcome.fallbacks[0].used == "Q4_0"
    assert not outcome.needs_imatrix


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("raise SystemExit('GGML_ASSERT(false) failed')", "exit code 1; GGML_ASSERT"),
        ("", "exit code 0"),
    ],
)
def test_death_of_the_child(child_is: ChildOf, code: str, expected: str) -> None:
    child_is(code)
    with pytest.raises(NativeCrashError, match=expected):
        run_quantizer(Path("x"), None, 2, n_threads=1)


def test_error_of_the_child_keeps_its_kind(child_is: ChildOf) -> None:
    child_is("""print('{"error": "not there", "kind": "NativeMissingError", "hint": "qwen-edge setup"}')""")
    with pytest.raises(NativeMissingError, match="not there") as caught:
        run_quantizer(Path("x"), None, 2, n_threads=1)
    assert caught.value.hint == "qwen-edge setup"


def test_exception_in_the_callback_ends_the_child(child_is: ChildOf) -> None:
    child_is("""import time; print('{"tensor": "a", "type": "Q4_0"}', flush=True); time.sleep(600)""")

    def fail(_name: str) -> None:
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        run_quantizer(Path("x"), None, 2, n_threads=1, on_tensor=fail)
