"""Compared with llama.cpp's own tools, where QWEN_EDGE_LLAMA_CPP_TOOLS or PATH has them.

The tools should be of the llama.cpp that llama-cpp-python holds, else bytes may differ for good reasons.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qwen_edge.quant_types import FILE_TYPES
from qwen_edge.quantize import evaluate_kld, quantize_file

TOOLS_VARIABLE = "QWEN_EDGE_LLAMA_CPP_TOOLS"


def tool(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get(TOOLS_VARIABLE) or os.environ.get("PATH"))


pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        not (tool("llama-quantize") and tool("llama-perplexity")),
        reason=f"no tools in {TOOLS_VARIABLE} or PATH",
    ),
]


def run(name: str, *args: str | Path) -> str:
    program = tool(name)
    assert program is not None
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(program).parent)}
    result = subprocess.run(
        [program, *map(str, args)], capture_output=True, text=True, check=True, env=environment
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize("name", [row.name for row in FILE_TYPES.values() if not row.needs_imatrix])
def test_same_bytes_as_llama_quantize(name: str, tiny_bf16: Path, tmp_path: Path) -> None:
    run("llama-quantize", tiny_bf16, tmp_path / "theirs.gguf", name, "1")
    quantize_file(tiny_bf16, tmp_path / "ours.gguf", name)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K_M", "Q2_K"])
def test_same_figures_as_llama_perplexity(name: str, tiny_bf16: Path, tmp_path: Path, eval_text: str) -> None:
    quantize_file(tiny_bf16, tmp_path / "q.gguf", name)
    (tmp_path / "text").write_text(eval_text)
    # One thread: more gain nothing on a model this small, and stall where cores are shared.
    common = ["-f", tmp_path / "text", "-c", "512", "-b", "512", "-t", "1", "-fa", "off", "--chunks", "12"]
    base = ["--kl-divergence-base", tmp_path / "base.kld"]
    run("llama-perplexity", "-m", tiny_bf16, *common, *base)
    printed = run("llama-perplexity", "-m", tmp_path / "q.gguf", *common, *base, "--kl-divergence")

    def theirs(label: str) -> float:
        found = re.search(rf"^{re.escape(label)}\s*:\s+([\d.]+)", printed, re.MULTILINE)
        assert found, f"no {label} in: {printed}"
        return float(found[1])

    ours = evaluate_kld(tiny_bf16, tmp_path / "q.gguf", eval_text, chunks=12, n_threads=1)
    # The tool keeps 16 bits of the reference's log-probabilities: steps of up to 16/65535.
    assert ours.mean_kld == pytest.approx(theirs("Mean    KLD"), rel=0.005, abs=2e-6)
    assert ours.kld_999 == pytest.approx(theirs("99.9%   KLD"), rel=0.01, abs=2e-5)
    assert ours.max_kld == pytest.approx(theirs("Maximum KLD"), rel=0.01, abs=1e-4)
    assert 100 * ours.same_top_share == pytest.approx(theirs("Same top p"), abs=0.15)
    assert ours.ppl_reference == pytest.approx(theirs("Mean PPL(base)"), rel=1e-4)
    assert ours.ppl_candidate == pytest.approx(theirs("Mean PPL(Q)"), rel=1e-4)
    assert 100 * ours.rms_delta_p == pytest.approx(theirs("RMS Δp"), abs=0.01)
