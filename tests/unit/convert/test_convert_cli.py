from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.cli.main import main


def test_writes_the_file_named_after_the_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(checkpoint)]) == 0
    assert (tmp_path / "Tiny-Qwen3-bf16.gguf").is_file()
    out, err = capsys.readouterr()
    assert "Tiny-Qwen3-bf16.gguf" in out
    assert "qwen3" in out
    assert "qwen-edge quantize Tiny-Qwen3-bf16.gguf --type Q4_K_M -o Tiny-Qwen3-Q4_K_M.gguf" in err


def test_a_single_file_is_named_after_its_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(checkpoint / "model.safetensors"), "--dtype", "f16"]) == 0
    assert (tmp_path / "Tiny-Qwen3-f16.gguf").is_file()


def test_json_is_all_that_stdout_carries(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a b.gguf"
    assert main(["convert", str(checkpoint), "--to", "gguf", "-o", str(target), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["path"] == str(target)
    assert report["size_bytes"] == target.stat().st_size
    assert f"quantize '{target}'" in err, "the hint can be pasted into a shell"


def test_an_existing_file_is_replaced_only_with_force(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"old")
    assert main(["convert", str(checkpoint), "-o", str(target)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert main(["convert", str(checkpoint), "-o", str(target), "--force"]) == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_a_dropped_head_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import synthetic

    folder = synthetic.write_checkpoint(tmp_path / "c", has_head=True)
    assert main(["convert", str(folder), "-o", str(tmp_path / "m.gguf")]) == 0
    assert "left out: lm_head.weight (a bitwise copy" in capsys.readouterr().out


def test_an_error_is_two_lines_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "nowhere"), "-o", str(tmp_path / "m.gguf")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: there is no checkpoint at")
    assert err.count("\n") == 2


@pytest.mark.parametrize("arguments", [[], ["x", "--dtype", "q4"], ["x", "--to", "onnx2"], ["x", "--frce"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments]) == 2
    assert "Usage" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_command_that_adds_it(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from qwen_edge.cli.main import main\n"
        "sys.exit(main(['convert', sys.argv[1], '-o', sys.argv[2]]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "m.gguf")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "'gguf', which is not installed" in result.stderr
    assert 'pip install "qwen-edge[convert]"' in result.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, qwen_edge.convert; print([m for m in ('numpy', 'gguf', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
