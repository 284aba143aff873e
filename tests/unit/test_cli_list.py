"""`qwen-edge list` as a person and as a script see it."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from typing import Any

import pytest

from qwen_edge import device, paths
from qwen_edge.catalog import MODELS
from qwen_edge.cli.list import Row, catalog_table
from qwen_edge.cli.main import main
from qwen_edge.config import LoadConfig
from qwen_edge.hub.local import find_local
from qwen_edge.memory import fits_of
from tests.address_space import skip_without_limits

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with 2 GB free, on a CPU that rearranges no heads."""
    found = device.AvailableMemory(
        available_bytes=2_000_000_000,
        total_bytes=2_000_000_000,
        limited_by="cgroup",
        reason="the cgroup may have 2 GB",
    )
    monkeypatch.setattr(device, "available_memory_bytes", lambda: found)
    monkeypatch.setattr(device, "cpu_features", lambda: ("avx2",))


def lines_of(capture: Capture, *args: str) -> list[str]:
    assert main(["list", *args]) == 0
    return capture.readouterr().out.splitlines()


def document_of(capture: Capture, *args: str) -> Any:
    assert main(["list", "--format", "json", *args]) == 0
    return json.loads(capture.readouterr().out)


@pytest.mark.usefixtures("memory")
def test_one_line_a_model_those_that_fit_first(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = [line.split() for line in lines_of(capsys)[3:]]
    assert sorted(row[0] for row in rows) == sorted(MODELS)
    fits = ["no" not in row[5:] for row in rows]
    assert fits == sorted(fits, reverse=True)
    assert rows[0] == ["qwen3-0.6b", "596", "M", "chat", "switch", "40k", "Apache-2.0", "Q8_0", "1.46", "-"]


@pytest.mark.usefixtures("memory")
def test_the_rest_goes_to_stderr(capsys: Capture) -> None:
    assert main(["list", "--n-ctx", "2048"]) == 0
    _, notes = capsys.readouterr()
    assert notes.splitlines() == [
        "Memory: the cgroup may have 2 GB. Counted at n_ctx 2048.",
        "10 of 24 do not fit: memory is what the smallest type on offer would need. A smaller --n-ctx needs less.",
        "Run as their authors' GGUF files, not converted here: smollm2-135m, llama-3.2-1b, gemma-3-1b, qwen3-30b-a3b.",
        "Next: qwen-edge pull NAME",
    ]


@pytest.mark.usefixtures("memory")
def test_json_has_every_field_and_what_fits(capsys: Capture) -> None:
    document = document_of(capsys)
    assert document["memory"]["limited_by"] == "cgroup"
    assert (document["n_ctx"], len(document["models"])) == (4096, len(MODELS))
    small, large = (
        next(row for row in document["models"] if row["name"] == name) for name in ("qwen3-0.6b", "qwen3-32b")
    )
    assert small["hub_id"] == "Qwen/Qwen3-0.6B"
    assert small["n_weights"] == 596_049_920
    assert small["shape"]["n_kv_heads"] == 8
    assert small["sampling_thinking"]["temperature"] == 0.6
    assert small["largest_that_fits"] == "Q8_0"
    assert [fit["type"] for fit in small["fits"]] == ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    for fit in small["fits"]:
        assert fit["memory_bytes"] == sum(fit["memory"].values())
        assert fit["fits"] == (fit["wanted_bytes"] <= 2_000_000_000)
        assert fit["memory_bytes"] - 30_000_000 == fit["wanted_bytes"]
    assert large["largest_that_fits"] is None
    assert not any(fit["fits"] for fit in large["fits"])


@pytest.mark.usefixtures("memory")
def test_a_longer_context_leaves_room_for_less(capsys: Capture) -> None:
    (short,) = document_of(capsys, "qwen3-0.6b", "--n-ctx", "512")["models"][:1]
    (long,) = document_of(capsys, "qwen3-0.6b", "--n-ctx", "8192")["models"][:1]
    assert (short["largest_that_fits"], long["largest_that_fits"]) == ("Q8_0", "Q6_K")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("coder", {"qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "qwen2.5-coder-3b"}),
        ("Qwen3 0.6B", {"qwen3-0.6b", "qwen3-0.6b-base"}),
        ("embedding", {"qwen3-embedding-0.6b"}),
        ("gemma", {"gemma-3-1b"}),
    ],
)
def test_a_part_of_the_name_chooses(capsys: Capture, name: str, found: set[str]) -> None:
    assert {row["name"] for row in document_of(capsys, name)["models"]} == found


def test_a_name_that_none_has(capsys: Capture) -> None:
    assert main(["list", "qwn3-0.6b"]) == 1
    assert capsys.readouterr().err == (
        "error: no model has 'qwn3-0.6b' in its name, family or kind\n  Did you mean qwen3-0.6b?\n"
    )


@pytest.mark.usefixtures("memory")
def test_what_is_here_is_said(capsys: Capture) -> None:
    file = paths.models_folder() / "Qwen--Qwen3-0.6B-GGUF" / "Qwen3-0.6B-Q4_0.gguf"
    file.parent.mkdir(parents=True)
    file.touch()
    assert lines_of(capsys, "qwen3-0.6b")[3].split()[-1] == "Q4_0"
    assert document_of(capsys, "qwen3-0.6b")["models"][0]["local"] == [
        {"path": str(file), "type": "Q4_0", "is_checkpoint": False}
    ]


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("width", [80, 100, 120])
def test_names_stay_whole(width: int) -> None:
    from rich.console import Console

    rows = [
        Row(model, fits_of(model, LoadConfig(), 2 * 10**9), find_local(model)) for model in MODELS.values()
    ]
    console = Console(width=width, file=io.StringIO())
    console.print(catalog_table(rows, is_narrow=width < 105))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    folded = [name for name in MODELS if name not in text]
    assert folded == (["deepseek-r1-distill-qwen-1.5b"] if width == 80 else [])


def test_two_gibibytes_of_address_space() -> None:
    """The command itself runs under a limit, and counts with it."""
    skip_without_limits()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    for arguments in (["--format", "json"], []):
        command = [sys.executable, "-m", "qwen_edge", "list", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=60)
        assert run.returncode == 0, run.stderr
        if arguments:
            found = json.loads(run.stdout)["memory"]
            assert (found["limited_by"], found["total_bytes"]) == ("ulimit", 2 << 30)
        else:
            assert "Memory: ulimit -v allows 2.15 GB" in run.stderr
