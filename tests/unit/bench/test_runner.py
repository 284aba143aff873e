"""Refusals before anything is loaded, and what becomes of a child's end."""

from __future__ import annotations

import pytest

from qwen_edge.bench import runner
from qwen_edge.bench.runner import BenchConfig, run_benchmark
from qwen_edge.bench.workload import Workload
from qwen_edge.cli.main import main
from qwen_edge.errors import ConfigError, GGUFError, ModelNotFoundError, NativeCrashError
from qwen_edge.native import child


def test_the_context_is_what_the_workload_needs_rounded_up():
    config = BenchConfig(workload=Workload(prompt_tokens=512, generate_tokens=128, depth=0))
    assert config.load_config.n_ctx == 768


def test_a_context_too_small_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="513 tokens and n_ctx is 512"):
        BenchConfig(n_ctx=512)


@pytest.mark.parametrize("wrong", [{"repetitions": 0}, {"n_threads": 0}, {"flash_attention": "auto"}])
def test_wrong_settings_are_refused_when_made(wrong):
    with pytest.raises(ConfigError):
        BenchConfig(**wrong)


def test_no_files_and_missing_files_are_errors_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_measure_in_child", lambda *args: pytest.fail("measured"))
    with pytest.raises(ConfigError, match="no files"):
        run_benchmark([])
    there = tmp_path / "a.gguf"
    there.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"b\.gguf"):
        run_benchmark([there, tmp_path / "b.gguf"])


def test_a_child_that_dies_is_a_crash_with_its_signal(tmp_path, monkeypatch):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    module = tmp_path / "dies_at_once.py"
    module.write_text(
        "import os, signal, sys\nsys.stderr.write('last words')\nsys.stderr.flush()\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    start = child.start_child
    monkeypatch.setattr(child, "start_child", lambda name, args: start("dies_at_once", args))
    with pytest.raises(NativeCrashError, match="signal SIGSEGV: last words"):
        run_benchmark([file])


def test_the_childs_own_error_comes_back_as_itself(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"nothing")
    with pytest.raises(GGUFError, match="no GGUF file"):
        run_benchmark([file])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["bench", "missing.gguf"], "no file missing.gguf"),
        (["bench", "missing.gguf", "--n-ctx", "100"], "needs a context of 513"),
        (["bench", "missing.gguf", "--generate-tokens", "1"], "generate_tokens must be at least 2"),
        (["bench", "qwen9"], "neither a file nor a known model"),
        (["demo", "--model", "tniy"], "Did you mean tiny?"),
        (["demo", "--model", "qwen2.5-coder-05b"], "Did you mean qwen2.5-coder-0.5b?"),
    ],
)
def test_mistakes_end_with_one_clear_error(args, expected, capsys):
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err


def test_wrong_usage_is_exit_2(capsys):
    assert main(["bench"]) == 2
    assert "FILE" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_before_work(tmp_path, capsys):
    blocked = tmp_path / "out"
    blocked.write_text("")
    assert main(["demo", "-o", str(blocked)]) == 1
    assert "is a file, not a folder" in capsys.readouterr().err


def test_a_hub_out_of_reach_says_what_works(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["demo", "--model", "qwen3-0.6b", "-o", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "1.5 GB" in out  # said before anything is fetched
    assert err.startswith("error: Qwen3-0.6B is on the hub, and HF_HUB_OFFLINE=1")
    assert "make demo MODEL=qwen2.5-coder-0.5b" in err
