"""Memory against the planned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge import device
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.device import AvailableMemory
from qwen_edge.doctor import fit
from qwen_edge.doctor.report import Check, guarded
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import estimate_header_memory, estimate_memory
from qwen_edge.trial_model import write_trial_outline


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 2 GB."""
    given = AvailableMemory(
        available_bytes=2_000_000_000,
        total_bytes=4_000_000_000,
        limited_by="cgroup",
        reason="2.00 GB are free",
    )
    monkeypatch.setattr(device, "available_memory_bytes", lambda: given)


def look(name: str | None, n_ctx: int = 4096) -> Check:
    (check,) = fit.check_fit(name, n_ctx)
    return check


pytestmark = pytest.mark.usefixtures("memory")


def test_without_a_name_the_largest_that_fits() -> None:
    check = look(None)
    assert check.status == "ok"
    assert "qwen3-1.7b" not in look(None, 32_000).found, "a longer context leaves room for less"
    name = check.found.partition(": ")[2].partition(" ")[0]
    assert MODELS[name].n_weights > 1e9


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    none = AvailableMemory(available_bytes=1, total_bytes=1, limited_by="ulimit", reason="ulimit -v allows 1")
    monkeypatch.setattr(device, "available_memory_bytes", lambda: none)
    check = look(None)
    assert (check.status, check.advice.partition(": ")[2]) == ("warning", "qwen-edge list --n-ctx 1024")


def test_a_model_that_fits_and_one_that_does_not() -> None:
    assert look("qwen3-0.6b@q4_0").status == "ok"
    check = look("qwen3-4b@q8_0")
    assert (check.status, check.cost, check.advice) == ("problem", "it does not fit", "qwen-edge list")


def test_a_smaller_type_and_a_shorter_context_are_offered_where_they_fit() -> None:
    check = look("qwen3-0.6b@bf16", 8192)
    assert check.status == "problem"
    # Which type depends on whether this CPU's kernels hold a second copy of the head.
    assert check.advice.startswith("qwen-edge pull qwen3-0.6b@Q")
    assert check.advice.endswith(", or a shorter context: --n-ctx 2048")


def test_a_type_that_list_does_not_show() -> None:
    assert "as Q5_0 needs" in look("qwen3-0.6b@q5_0").found


def test_a_file_is_counted_from_its_header(tmp_path: Path) -> None:
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    path = tmp_path / "m.gguf"
    write_trial_outline(path, shape, "Q4_0")
    need = estimate_header_memory(read_header(path), LoadConfig(n_ctx=2048))
    assert need is not None
    planned = estimate_memory(shape, "Q4_0", LoadConfig(n_ctx=2048))
    # A trial model holds no vocabulary.
    assert need == replace(planned, runtime_bytes=need.runtime_bytes)
    assert 0 < planned.runtime_bytes - need.runtime_bytes < 60_000_000
    assert look(str(path)).found.startswith("m.gguf (Q4_0) needs")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("qwn3-0.6b", "neither a file nor a known model"),
        ("someone/something", "nothing is known before it is here"),
        ("./missing.gguf", "no such file"),
        ("gemma-3-1b@q6_k", "is not offered as Q6_K"),
    ],
)
def test_what_cannot_be_counted_is_a_finding_with_a_hint(name: str, found: str) -> None:
    (check,) = guarded("Memory", "fit", lambda: fit.check_fit(name, 4096))
    assert check.status == "warning"
    assert found in check.found
    assert check.advice


def test_a_header_without_sizes_is_refused(tmp_path: Path, make_gguf: object) -> None:
    path = make_gguf()  # type: ignore[operator]
    (check,) = guarded("Memory", "fit", lambda: fit.check_fit(str(path), 4096))
    assert "does not tell the sizes of its model" in check.found
