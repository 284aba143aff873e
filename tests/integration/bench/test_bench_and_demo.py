"""The two commands on the tiny model, with workloads of a moment. No time is asserted."""

from __future__ import annotations

import hashlib
import json
import struct
import sys

import pytest

from qwen_edge.bench import prefix_cache
from qwen_edge.bench.demo import DemoConfig, Toolkit, run_demo
from qwen_edge.bench.workload import Workload
from qwen_edge.cli.demo import TerminalStage
from qwen_edge.cli.main import main
from qwen_edge.convert import convert_checkpoint
from qwen_edge.quantize import evaluate_kld, quantize_file

SMALL = ["--prompt-tokens", "40", "--generate-tokens", "8", "--repetitions", "2", "--threads", "1"]
TOOLKIT = Toolkit(convert=convert_checkpoint, quantize=quantize_file, evaluate=evaluate_kld)


def test_bench_prints_the_schema(tiny_bf16, capsys):
    assert main(["bench", str(tiny_bf16), *SMALL, "--depth", "30", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert "n_ctx 256" in err
    record = json.loads(out)
    assert record["schema"] == "qwen-edge/bench/1"
    assert {"cpu", "features", "usable_cores", "memory_bytes", "native"} <= set(record["machine"])
    assert record["machine"]["native"]["version"] == "0.3.36"
    (result,) = record["results"]
    assert result["file"] == str(tiny_bf16)
    assert result["sha256"] == hashlib.sha256(tiny_bf16.read_bytes()).hexdigest()
    assert result["size_bytes"] == tiny_bf16.stat().st_size
    assert result["bits_per_weight"] == pytest.approx(16, abs=0.1)
    assert result["engine"] == "llama.cpp"
    assert {"threads": 1, "n_ctx": 256, "flash_attention": "off"}.items() <= result["settings"].items()
    assert result["workload"] == {"prompt_tokens": 40, "generate_tokens": 8, "depth": 30, "repetitions": 2}
    for phase in ("prefill", "decode"):
        speed = result[f"{phase}_tokens_per_s"]
        assert len(speed["samples"]) == 2
        assert speed["median"] > 0
    assert result["ttft_s"] > 0
    assert result["load_s"] > 0
    assert result["memory"]["peak_rss_bytes"] > tiny_bf16.stat().st_size


def test_bench_measures_an_onnx_folder(tiny_onnx, capsys):
    assert main(["bench", str(tiny_onnx), *SMALL, "--format", "json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    graph, weights = tiny_onnx / "model.onnx", tiny_onnx / "model.onnx.data"
    assert result["engine"] == "onnxruntime"
    assert result["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert result["size_bytes"] == graph.stat().st_size + weights.stat().st_size
    assert result["bits_per_weight"] == pytest.approx(32, abs=0.1)
    assert result["decode_tokens_per_s"]["median"] > 0
    assert main(["bench", str(tiny_onnx), *SMALL]) == 0
    assert "ONNX Runtime on cpu" in capsys.readouterr().out


def test_peak_memory_is_that_of_the_file_not_of_this_process(tiny_bf16, capsys):
    ballast = bytearray(400 << 20)
    ballast[::4096] = bytes(len(ballast[::4096]) * [1])
    main(["bench", str(tiny_bf16), *SMALL, "--format", "json"])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["memory"]["peak_rss_bytes"] < 300 << 20
    assert len(ballast) == 400 << 20


def test_bench_prints_a_table_with_flash_attention_and_a_given_context(tiny_bf16, capsys):
    assert main(["bench", str(tiny_bf16), *SMALL, "--flash-attention", "on", "--n-ctx", "300"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "tiny-bf16" in out
    assert "n_ctx 300, flash attention on" in out
    assert max(map(len, out.splitlines())) <= 80


def check_files(result):
    assert result.figure is not None
    data = result.figure.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1500, 690)
    record = json.loads(result.record_file.read_text())
    assert record == json.loads(json.dumps(result.to_dict()))
    assert record["advice"]["file"] in {file["file"] for file in record["files"]}
    assert [file["type"] for file in record["files"] if file["reference"]] == [record["quality_against"]]
    return record


def test_demo_end_to_end(tmp_path, capsys):
    stage = TerminalStage(to_stderr=False)
    workload = Workload(prompt_tokens=40, generate_tokens=8)
    config = DemoConfig(output=tmp_path / "out", workload=workload, repetitions=2)
    result = run_demo(config, TOOLKIT, stage)
    stage.conclude(result)
    record = check_files(result)
    assert {file["type"] for file in record["files"]} == {"BF16", "Q8_0", "Q4_K_M", "Q4_0"}
    klds = {file["type"]: file["mean_kld"] for file in record["files"]}
    assert 0 == klds["BF16"] < klds["Q8_0"] < klds["Q4_K_M"] < klds["Q4_0"] < 0.02
    assert [exchange["right"] for exchange in record["conversation"]] == [True, True, True]
    assert record["conversation"][1]["replies"][0]["thinking"]
    assert record["conversation"][2]["tool_results"] == ['{"temp_c": 17, "sky": "sunny"}']
    out = capsys.readouterr().out
    assert out.count("\n[") == 6  # a heading for each step
    assert "Take tiny-qwen3-" in out
    assert "make demo MODEL=qwen2.5-coder-0.5b" in out
    assert "Total: " in out


def test_demo_of_a_quantized_file_asks_ten_prompts_and_says_what_is_lost(tmp_path, tiny_bf16, capsys):
    source = tmp_path / "tiny-Q8_0.gguf"
    quantize_file(tiny_bf16, source, "Q8_0")
    workload = Workload(prompt_tokens=8, generate_tokens=2)
    config = DemoConfig(
        model=str(source), output=tmp_path / "out", workload=workload, repetitions=1, n_threads=1
    )
    result = run_demo(config, TOOLKIT, TerminalStage(to_stderr=True))
    record = check_files(result)
    assert record["ten_prompts"]["asked"] == 10
    assert record["ten_prompts"]["passed"] == result.passed <= 10
    assert record["conversation"] == []
    out, err = capsys.readouterr()
    assert out == ""
    assert "was quantized already" in err
    assert f"{result.passed} of 10 passed" in err


def test_demo_without_matplotlib_goes_without_the_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    workload = Workload(prompt_tokens=16, generate_tokens=4)
    config = DemoConfig(output=tmp_path / "out", workload=workload, repetitions=1)
    result = run_demo(config, TOOLKIT, TerminalStage(to_stderr=True))
    assert result.figure is None
    assert "no figure: drawing the figure needs the package" in capsys.readouterr().err
    assert json.loads(result.record_file.read_text())["figure"] is None
    assert not list((tmp_path / "out").glob("*.png"))


def test_demo_json_is_one_document(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["schema"] == "qwen-edge/demo/1"
    assert record["bench"]["schema"] == "qwen-edge/bench/1"
    assert "Total: " in err


def test_what_the_prefix_cache_saves(tiny_bf16, capsys):
    arguments = [str(tiny_bf16), "--tokens", "300", "--threads", "1", "--repetitions", "1"]
    prefix_cache.main([*arguments, "--format", "json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "qwen-edge/prefix-cache/1"
    assert record["prompt_tokens"] > 300
    assert record["entry_bytes"] > 0
    assert set(record["median_s"]) == set(record["share_of_cold"]) == {"cold", "memory", "disk"}
    assert record["share_of_cold"]["cold"] == 1.0
    prefix_cache.main(arguments, standalone_mode=False)
    assert "Share of cold" in capsys.readouterr().out
