"""Tables, figure and what comes from other programs."""

from __future__ import annotations

import io
import json
import struct

import pytest
from rich.console import Console

from qwen_edge.bench.figure import save_figure
from qwen_edge.bench.peers import parse_llama_bench, run_llama_bench
from qwen_edge.bench.record import BenchRecord
from qwen_edge.bench.tables import bench_caption, bench_table, demo_table
from qwen_edge.errors import ConfigError, NativeError


def render(table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue().splitlines()


def test_the_bench_table_fits_80_columns_and_shows_every_figure(make_result):
    record = BenchRecord(
        machine={"cpu": "A CPU"},
        results=(make_result(), make_result("other/qwen2.5-coder-0.5b-Q4_K_M.gguf", 491_400_064, (30.25,))),
    )
    lines = render(bench_table(record))
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "m-Q4_0" in line)
    assert row.split() == ["m-Q4_0", "4.0", "4.50", "400", "50.0", "1.250", "0.500", "80.0"]
    assert any("491.4" in line and "30.2" in line for line in lines)
    assert "512" in bench_caption(record)
    assert "2 threads" in bench_caption(record)


def test_files_of_one_name_keep_their_folders(make_result):
    record = BenchRecord(machine={}, results=(make_result("a/m.gguf"), make_result("b/m.gguf")))
    text = "\n".join(render(bench_table(record)))
    assert "a/m.gguf" in text
    assert "b/m.gguf" in text


def test_the_demo_table_marks_the_reference(make_candidate):
    candidates = [make_candidate("Q4_0", 4, 50), make_candidate("BF16", 12, 20, kld=0.0, is_reference=True)]
    lines = render(demo_table(candidates, "BF16"))
    assert max(map(len, lines)) <= 80
    assert "0.0100" in next(line for line in lines if "m-Q4_0" in line)
    assert next(line for line in lines if "m-BF16" in line).split()[3] == "-"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_figure_is_a_png(tmp_path, make_candidate, count):
    candidates = [
        make_candidate(f"Q{bits}", bits, (50.0, 40.0), kld=0.1 / bits) for bits in range(1, count + 1)
    ]
    target = tmp_path / "figure.png"
    save_figure(target, "A model", "BF16", candidates, candidates[0])
    data = target.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1500, 690)


def test_llama_bench_output_is_read():
    rows = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 800.5}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 70.25}]
    speed = parse_llama_bench(json.dumps(rows))
    assert (speed.prefill_tokens_per_s, speed.decode_tokens_per_s) == (800.5, 70.25)


@pytest.mark.parametrize("output", ["", "[]", "{}", '[{"n_prompt": 512, "n_gen": 0, "avg_ts": 1.0}]', "null"])
def test_other_output_is_an_error(output):
    with pytest.raises(NativeError, match="two results"):
        parse_llama_bench(output)


def test_a_missing_peer_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot run"):
        run_llama_bench(
            tmp_path / "llama-bench",
            tmp_path / "m.gguf",
            prompt_tokens=1,
            generate_tokens=1,
            depth=0,
            n_threads=1,
            flash_attention="off",
        )
