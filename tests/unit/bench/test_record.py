from __future__ import annotations

import json

import pytest

from qwen_edge.bench.record import BenchRecord, FileResult, Samples


def test_the_median_and_the_noise_ignore_one_disturbed_repetition():
    samples = Samples((50.0, 51.0, 49.0, 3.0, 50.0))
    assert samples.median == 50.0
    assert samples.noise == pytest.approx(0.02)


def test_one_sample_has_no_noise_and_standstill_is_no_error():
    assert Samples((7.0,)).noise == 0.0
    assert Samples((0.0, 0.0)).noise == 0.0


def test_the_record_has_the_keys_of_the_schema_and_nothing_else(make_result):
    data = BenchRecord(machine={"cpu": "x"}, results=(make_result(),), warnings=("slow",)).to_dict()
    assert list(data) == ["schema", "machine", "results"]
    assert data["schema"] == "qwen-edge/bench/1"
    (result,) = data["results"]
    assert list(result) == [
        "file", "sha256", "size_bytes", "bits_per_weight", "engine", "settings", "workload",
        "prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s", "load_s", "memory",
    ]  # fmt: skip
    assert result["prefill_tokens_per_s"] == {"median": 400.0, "samples": [400.0, 410.0, 390.0]}
    assert result["memory"] == {"peak_rss_bytes": 80_000_000, "private_dirty_bytes": None}


def test_a_result_survives_json(make_result):
    result = make_result()
    assert FileResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
