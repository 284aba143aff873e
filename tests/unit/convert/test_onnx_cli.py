"""`convert --to onnx` and `quantize FOLDER` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_edge.cli.main import main
from qwen_edge.convert import GraphForm, OnnxPrecision, export_onnx
from qwen_edge.manifest import read_manifest
from tests import synthetic
from tests.adapters import write_adapter

TEXT = "the thing in the " * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def settings_of(folder: Path) -> dict[str, object]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return {
        **manifest.settings["precision"],
        **manifest.settings["form"],
        "has_importance": manifest.settings["has_importance"],
    }


def test_writes_the_folder_named_after_checkpoint_and_type(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(checkpoint), "--to", "onnx", "--weights", "int4", "--head", "int8"]) == 0
    assert (tmp_path / "Tiny-Qwen3-onnx-int4" / "model.onnx").is_file()
    out, err = capsys.readouterr()
    assert "qwen3, int4, head int8, embedding int8" in out
    assert "bits per weight" in out
    assert 'Next: qwen-edge run Tiny-Qwen3-onnx-int4 "Hello"' in err


def test_every_option_reaches_the_export(checkpoint: Path, tmp_path: Path, text: Path) -> None:
    arguments = ["--weights", "int4", "--head", "int8", "--embedding", "f16", "--block-size", "64"]
    arguments += ["--asymmetric", "--calibrate", str(text), "--opset-only", "--static", "1,16,64"]
    assert main(["convert", str(checkpoint), "--to", "onnx", *arguments, "-o", str(tmp_path / "o")]) == 0
    expected = {
        "weights": "int4", "head": "int8", "embedding": "f16", "block_size": 64, "symmetric": False,
        "rounding": "search", "plain": True, "fixed": {"batch": 1, "tokens": 16, "past": 64}, "has_importance": True,
    }  # fmt: skip
    assert settings_of(tmp_path / "o").items() >= expected.items()


def test_the_command_writes_what_the_function_does(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--weights", "int8", "--rounding", "search"]
    assert main(["convert", str(checkpoint), "--to", "onnx", *arguments, "-o", str(tmp_path / "a")]) == 0
    export_onnx(checkpoint, tmp_path / "b", precision=OnnxPrecision(weights="int8", rounding="search"))
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_json_is_all_that_stdout_carries(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", "onnx", "--weights", "f16", "-o", str(tmp_path / "a b"), "--format", "json"]
    assert main(["convert", str(checkpoint), *arguments]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["path"] == str(tmp_path / "a b")
    assert report["precision"]["weights"] == "f16"
    assert report["form"] == {"plain": False, "fixed": None}
    assert "F16 is a form of the file" in err
    assert f"run '{tmp_path / 'a b'}'" in err, "the hint can be pasted into a shell"


def test_a_plain_four_bit_embedding_is_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", "onnx", "--weights", "int4", "--opset-only", "-o", str(tmp_path / "o")]
    assert main(["convert", str(checkpoint), *arguments]) == 0
    assert "stored in 8 bits" in capsys.readouterr().err


def test_an_existing_folder_is_replaced_only_with_force(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(checkpoint), "--to", "onnx", "-o", str(tmp_path / "o")]
    assert main(arguments) == 0
    assert main([*arguments, "--weights", "int8"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--weights", "int8", "--force"]) == 0
    assert settings_of(tmp_path / "o")["weights"] == "int8"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onnx", "--dtype", "f16"], "--dtype: goes with --to gguf"),
        (["--to", "onnx", "--opset-only", "--verify"], "--verify: needs ONNX Runtime"),
        (["--to", "onnx", "--weights", "int8", "--accuracy", "auto"], "--accuracy is of int4 weights"),
        (["--to", "onnx", "--base", "x"], "--base: goes with --to gguf"),
        (["--to", "onnx", "--no-reranker"], "--reranker/--no-reranker: goes with --to gguf"),
        (["--weights", "int4"], "--weights: goes with --to onnx"),
        (["--head", "int8"], "--head: goes with --to onnx"),
        (["--embedding", "int8"], "--embedding: goes with --to onnx"),
        (["--block-size", "32"], "--block-size: goes with --to onnx"),
        (["--asymmetric"], "--asymmetric: goes with --to onnx"),
        (["--rounding", "nearest"], "--rounding: goes with --to onnx"),
        (["--calibrate", "TEXT"], "--calibrate: goes with --to onnx"),
        (["--opset-only"], "--opset-only: goes with --to onnx"),
        (["--static", "1,8,8"], "--static: goes with --to onnx"),
        (["--to", "onnx", "--static", "1,8,8"], "--static goes with --opset-only"),
        (["--to", "onnx", "--opset-only", "--static", "1,8"], "is not BATCH,TOKENS,PAST"),
        (["--to", "onnx", "--opset-only", "--static", "1,0,8"], "is not BATCH,TOKENS,PAST"),
        (["--to", "onnx", "--asymmetric"], "only matters for int8 and int4"),
        (["--to", "onnx", "--weights", "f16", "--calibrate", "TEXT"], "only matters for int8 and int4"),
        (
            ["--to", "onnx", "--weights", "int4", "--calibrate", "TEXT", "--rounding", "nearest"],
            "nearest looks at nothing",
        ),
        (["--to", "onnx", "--weights", "q4_0"], "'q4_0' is not one of"),
    ],
)
def test_no_option_is_silently_ignored(
    checkpoint: Path,
    tmp_path: Path,
    text: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(text) if each == "TEXT" else each for each in arguments]
    assert main(["convert", str(checkpoint), *arguments, "-o", str(tmp_path / "o")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_an_adapter_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    assert main(["convert", str(tmp_path / "a"), "--to", "onnx"]) == 2
    assert "--to onnx --adapter" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["int4", "INT8"])
def test_quantize_gives_what_convert_gives(
    checkpoint: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export_onnx(checkpoint, tmp_path / "m-onnx-f32", form=GraphForm())
    assert main(["quantize", str(tmp_path / "m-onnx-f32"), "--type", kind, "--block-size", "64"]) == 0
    made = tmp_path / f"m-onnx-{kind.lower()}"
    precision = OnnxPrecision(weights=kind.lower(), block_size=64)  # type: ignore[arg-type]
    export_onnx(checkpoint, tmp_path / "direct", precision=precision)
    for name in ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"):
        assert (made / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    assert f"run {made}" in capsys.readouterr().err


def test_quantize_calibrates_on_the_exported_weights(checkpoint: Path, tmp_path: Path, text: Path) -> None:
    export_onnx(checkpoint, tmp_path / "f32")
    options = ["--calibrate", str(text)]
    assert (
        main(["quantize", str(tmp_path / "f32"), "--type", "int4", *options, "-o", str(tmp_path / "a")]) == 0
    )
    arguments = ["--to", "onnx", "--weights", "int4", *options, "-o", str(tmp_path / "b")]
    assert main(["convert", str(checkpoint), *arguments]) == 0
    assert (tmp_path / "a" / "model.onnx.data").read_bytes() == (
        tmp_path / "b" / "model.onnx.data"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--type", "Q4_K_M"], "an ONNX model is quantized to int8 or int4"),
        (["--type", "int4", "--pure"], "--pure: goes with a GGUF file"),
        (["--type", "int4", "--dry-run"], "--dry-run: goes with a GGUF file"),
        (["--type", "int4", "--threads", "1"], "--threads: goes with a GGUF file"),
        (["--type", "int4", "--allow-requantize"], "--allow-requantize: goes with a GGUF file"),
    ],
)
def test_quantize_of_a_folder_refuses_what_is_for_files(
    checkpoint: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export_onnx(checkpoint, tmp_path / "f32")
    assert main(["quantize", str(tmp_path / "f32"), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_quantize_of_a_file_refuses_what_is_for_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tmp_path / "m.gguf"), "--type", "Q4_0", "--asymmetric"]) == 2
    assert "--asymmetric: goes with an ONNX folder" in " ".join(capsys.readouterr().err.split())


def test_quantize_of_a_checkpoint_says_what_to_do(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(checkpoint), "--type", "int4"]) == 1
    assert "--to onnx --weights int4" in capsys.readouterr().err


def test_a_calibration_text_that_is_none(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    arguments = ["--to", "onnx", "--weights", "int4", "--calibrate", str(tmp_path / "bytes")]
    assert main(["convert", str(checkpoint), *arguments, "-o", str(tmp_path / "o")]) == 1
    assert "no UTF-8 text" in capsys.readouterr().err


def test_adapters_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic.write_checkpoint(tmp_path / "c", dtype="F32")
    adapter = tmp_path / "adapter"
    write_adapter(adapter, folder)
    for name, options in {"plain": [], "merged": ["--adapter", str(adapter)]}.items():
        assert main(["convert", str(folder), "--to", "onnx", *options, "-o", str(tmp_path / name)]) == 0
    assert f"merged: {adapter}" in capsys.readouterr().out
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("plain", "merged")]
    assert data[0] != data[1]
