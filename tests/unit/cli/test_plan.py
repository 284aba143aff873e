"""`qwen-edge plan` as a person and as a script see it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_edge import device, memory_kernels
from qwen_edge.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with 2 GB free, on a CPU with AVX2."""
    found = device.AvailableMemory(
        available_bytes=2_000_000_000,
        total_bytes=2_000_000_000,
        limited_by="cgroup",
        reason="the cgroup may have 2 GB",
    )
    monkeypatch.setattr(device, "available_memory_bytes", lambda: found)
    monkeypatch.setattr(memory_kernels, "build_kernels", lambda: frozenset({"avx2"}))


def document_of(capture: Capture, *args: str, code: int = 0) -> Any:
    assert main(["plan", "--format", "json", *args]) == code
    return json.loads(capture.readouterr().out)


def test_a_table_by_part_and_whether_it_fits(capsys: Capture) -> None:
    assert main(["plan", "qwen3-0.6b", "--n-ctx", "2048"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split() == ["qwen3-0.6b", "as", "Q4_K_M", "Memory"]
    assert [line.split()[0] for line in lines[2:] if line.strip()] == [
        "Weights",
        "KV",
        "Activations,",
        "Python,",
        "Peak",
    ]
    assert "KV cache, 2,048 tokens" in said.out
    assert "Free: 2.00 GB. The cgroup may have 2 GB." in said.err
    assert said.err.endswith("It fits.\n")


def test_parts_add_up_to_the_peak(capsys: Capture) -> None:
    found = document_of(capsys, "qwen3-0.6b@q8_0", "--sessions", "2")
    assert (found["type"], found["n_ctx"], found["n_sessions"]) == ("Q8_0", 4096, 2)
    assert found["peak_bytes"] == sum(found["memory"].values())
    assert found["fits"] == (found["wanted_bytes"] <= 2_000_000_000)
    assert found["memory"]["kv_bytes"] == 2 * 4096 * 112 * 1024


def test_what_does_not_fit_is_told_with_what_would(capsys: Capture) -> None:
    found = document_of(capsys, "qwen3-1.7b@q8_0", "--n-ctx", "4096", code=1)
    assert not found["fits"]
    assert found["largest_n_ctx"] < 4096
    assert "another type, qwen3-1.7b@Q" in found["advice"]
    assert "another model, " in found["advice"]
    assert main(["plan", "qwen3-1.7b@q8_0"]) == 1
    assert "It does not fit. What would fit: " in capsys.readouterr().err


def test_the_largest_context(capsys: Capture) -> None:
    found = document_of(capsys, "qwen3-0.6b", "--n-ctx", "auto")
    assert found["fits"]
    assert 4096 < found["n_ctx"] <= found["largest_n_ctx"] < 40_960
    longer = document_of(capsys, "qwen3-0.6b", "--n-ctx", "auto", "--kv-type", "q8_0")
    assert longer["flash_attention"] == "on"
    assert longer["n_ctx"] > found["n_ctx"]


def test_a_mapped_file_needs_less_to_be_free_and_peaks_higher(capsys: Capture) -> None:
    read, mapped = (document_of(capsys, "qwen3-0.6b", "--load-mode", mode) for mode in ("read", "mmap"))
    assert mapped["wanted_bytes"] < read["wanted_bytes"]
    assert mapped["peak_bytes"] > read["peak_bytes"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["qwn3-0.6b"], "neither a file nor a known model"),
        (["someone/something"], "nothing is known before it is here"),
        (["gemma-3-1b@q6_k"], "is not offered as Q6_K"),
    ],
)
def test_what_cannot_be_planned(capsys: Capture, args: list[str], said: str) -> None:
    assert main(["plan", *args]) == 1
    assert said in capsys.readouterr().err


def test_a_type_that_is_seldom_asked_for(capsys: Capture) -> None:
    small, usual = (document_of(capsys, f"qwen3-0.6b@{kind}") for kind in ("iq2_xs", "q4_0"))
    assert small["wanted_bytes"] < usual["wanted_bytes"]


def test_a_context_that_is_no_number(capsys: Capture) -> None:
    assert main(["plan", "qwen3-0.6b", "--n-ctx", "most"]) == 2
    assert "'most' is not a valid" in capsys.readouterr().err


def test_what_runs_in_so_much_memory(capsys: Capture) -> None:
    found = document_of(capsys, "--memory", "1GB")
    assert (found["memory_bytes"], found["budget_bytes"]) == (1_000_000_000, 900_000_000)
    fits = {each["name"]: each["fit"] for each in found["models"]}
    assert fits["qwen2.5-0.5b"]["type"] == "Q8_0"
    assert fits["qwen2.5-0.5b"]["held_bytes"] <= 900_000_000
    from_disk = [bool(each["fit"]["disk_bytes_per_token"]) for each in found["models"]]
    assert from_disk == sorted(from_disk)
    assert {True, False} == set(from_disk)


def test_what_runs_in_so_much_memory_is_a_table_and_a_line_to_load_it_with(capsys: Capture) -> None:
    assert main(["plan", "qwen3-0.6b", "--memory", "900MB", "--n-ctx", "2048"]) == 0
    said = capsys.readouterr()
    line = next(line for line in said.out.splitlines() if line.startswith("qwen3-0.6b"))
    assert line.split()[1:4] == ["Q6_K", "2,048", "2,560"]
    assert "KV q8_0" in line
    assert "in 810.0 MB; a tenth of 900.0 MB is left free" in said.err
    assert "Load it with: qwen_edge.load('qwen3-0.6b@q6_k', n_ctx=2048, flash_attention='on'" in said.err


def test_nothing_runs_in_too_little(capsys: Capture) -> None:
    found = document_of(capsys, "qwen3-4b@q8_0", "--memory", "100MB", code=1)
    assert found["models"] == [{"name": "qwen3-4b", "fit": None}]
    assert main(["plan", "qwen3-4b", "--memory", "100MB"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].split() == ["qwen3-4b", "no", "-", "-", "-"]
    assert main(["plan"]) == 2
