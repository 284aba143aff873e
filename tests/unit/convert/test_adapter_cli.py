from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from qwen_edge.cli.main import main
from qwen_edge.cli.options import parse_adapter
from qwen_edge.convert import convert_checkpoint
from tests.adapters import write_adapter


def test_merges_adapters_with_scales(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write_adapter(tmp_path / f"{seed}", checkpoint, seed=seed).folder for seed in (1, 2))
    target, expected = tmp_path / "m.gguf", tmp_path / "expected.gguf"
    convert_checkpoint(checkpoint, expected, adapters=[(first, 0.5), second])
    command = ["convert", str(checkpoint), "--adapter", f"{first}:0.5", "--adapter", str(second)]
    assert main([*command, "-o", str(target)]) == 0
    out, err = capsys.readouterr()
    assert f"merged: {first}" in out
    assert "quantize" in err
    assert target.read_bytes() == expected.read_bytes()
    assert main([*command, "-o", str(target), "--force", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == [str(first), str(second)]


def test_an_adapter_folder_becomes_a_file_of_its_own(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "pirate", checkpoint).folder
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(folder), "--base", str(checkpoint)]) == 0
    out, err = capsys.readouterr()
    assert "pirate-f32.gguf" in out
    assert "--adapter pirate-f32.gguf" in err
    assert gguf.GGUFReader(tmp_path / "pirate-f32.gguf").get_field("general.type").contents() == "adapter"
    assert main(["convert", str(folder), "--base", str(checkpoint)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (
        main(["convert", str(folder), "--base", str(checkpoint), "--dtype", "f16", "--format", "json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["dtype"] == "f16"


def test_wrong_combinations_are_wrong_usage(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_adapter(tmp_path / "a", checkpoint).folder)
    assert main(["convert", folder]) == 2
    assert "--base CHECKPOINT" in capsys.readouterr().err
    assert main(["convert", folder, "--base", str(checkpoint), "--adapter", folder]) == 2
    assert "an adapter itself" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), "--base", folder]) == 2
    assert "no adapter_config.json" in capsys.readouterr().err


def test_errors_are_explained(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_adapter(tmp_path / "a", checkpoint).folder)
    assert (
        main(["convert", folder, "--base", str(checkpoint), "--dtype", "bf16", "-o", str(tmp_path / "x")])
        == 1
    )
    assert "expected one of f32, f16" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), "--adapter", "nowhere", "-o", str(tmp_path / "x")]) == 1
    assert "no adapter folder" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), "--adapter", f"{folder}:nan", "-o", str(tmp_path / "x")]) == 2
    assert "scale" in capsys.readouterr().err


def test_path_and_scale_are_told_apart(tmp_path: Path) -> None:
    def parsed(text: str) -> tuple[str, float]:
        adapter = parse_adapter(text)
        return str(adapter.path), adapter.scale

    assert parsed("a.gguf") == ("a.gguf", 1.0)
    assert parsed("a.gguf:0.5") == ("a.gguf", 0.5)
    assert parsed("a.gguf:-2") == ("a.gguf", -2.0)
    assert parsed("v:1/a.gguf") == ("v:1/a.gguf", 1.0)
    (tmp_path / "a:2").mkdir()
    assert parsed(f"{tmp_path}/a:2") == (f"{tmp_path}/a:2", 1.0)
    assert parsed(f"{tmp_path}/a:2:3") == (f"{tmp_path}/a:2", 3.0)
