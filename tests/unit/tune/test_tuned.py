"""Findings that are kept: when they are used, when they are not, and what damage does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge import device, tuned
from qwen_edge.config import LoadConfig
from qwen_edge.errors import ConfigError, WriteError
from qwen_edge.native import library
from qwen_edge.tune.words import describe_settings, explain, verdict
from qwen_edge.tuned import Settings, TuneRecord, Workload, apply_tuned, find_record, forget, remember

FOUND = Settings(
    n_threads=3, n_prefill_threads=4, n_batch=256, flash_attention="on", safe_kernels=True, load_mode="mmap"
)
SPEEDS = {
    "default": {"prefill": 100.0, "decode": 20.0, "turn_s": 10.0},
    "tuned": {"prefill": 150.0, "decode": 25.0, "turn_s": 8.0},
}


def record(settings: Settings = FOUND, **changes: Any) -> TuneRecord:
    tried = [
        {"settings": asdict(settings), "turn_s": 8.0, "kept": True},
        {"settings": asdict(Settings(n_threads=4)), "turn_s": 10.0, "kept": False},
    ]
    found = TuneRecord(
        settings=settings,
        workload=Workload(),
        speeds=SPEEDS,
        steps=[{"round": "first", "tried": tried}],
        seconds=12.0,
        measured_at=1.0,
    )
    return replace(found, **changes)


@pytest.fixture(autouse=True)
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def set_build(name: str) -> None:
        monkeypatch.setattr(library, "library_fingerprint", lambda: name)

    set_build("one")
    return set_build


@pytest.fixture
def file(float_gguf: Path) -> Path:
    return float_gguf


def test_found_settings_are_used_where_nothing_else_is_asked(file: Path) -> None:
    assert apply_tuned(file, LoadConfig()) == LoadConfig()
    remember(file, record())
    assert apply_tuned(file, LoadConfig(n_ctx=99)) == FOUND.config(LoadConfig(n_ctx=99))
    assert find_record(file) == record()


def test_what_is_asked_for_stays(file: Path) -> None:
    remember(file, record())
    assert apply_tuned(file, LoadConfig(n_batch=64)).n_batch == 64
    assert apply_tuned(file, LoadConfig(), ["flash_attention"]).flash_attention == "off"
    asked = apply_tuned(file, LoadConfig(n_threads=1))
    assert (asked.n_threads, asked.n_prefill_threads) == (1, None)
    assert apply_tuned(file, LoadConfig(tuned=False)) == LoadConfig(tuned=False)


def test_what_contradicts_is_left_out(file: Path) -> None:
    remember(file, record(Settings(n_threads=2, kv_type="q8_0", flash_attention="on")))
    config = LoadConfig()
    assert apply_tuned(file, config).kv_type == "q8_0"
    assert apply_tuned(file, config, ["flash_attention"]) == config
    remember(file, record(Settings(n_threads=2, flash_attention="off")))
    eight_bit = LoadConfig(kv_type="q8_0", flash_attention="on")
    assert apply_tuned(file, eight_bit, ["kv_type"]).flash_attention == "on"


def test_another_number_of_sessions_is_another_workload(file: Path) -> None:
    remember(file, record(workload=Workload(n_sessions=4)))
    assert apply_tuned(file, LoadConfig()) == LoadConfig()
    assert apply_tuned(file, LoadConfig(n_sessions=4)).n_threads == 3


def test_another_file_machine_or_build_knows_nothing_of_it(
    file: Path, build: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remember(file, record())
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert find_record(copy) == record()  # the same bytes under another name
    copy.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert find_record(copy) is None
    build("two")
    assert find_record(file) is None
    build("one")
    monkeypatch.setattr(device, "cpu_name", lambda: "another")
    assert find_record(file) is None


def test_a_file_whose_size_nobody_tuned_is_not_hashed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "file_digest", lambda path: pytest.fail("hashed"))
    assert find_record(file) is None


def test_forgetting(file: Path) -> None:
    remember(file, record())
    assert forget(file)
    assert not forget(file)
    assert find_record(file) is None


def test_a_cache_that_cannot_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("QWEN_EDGE_CACHE", str(tmp_path / "blocked"))
    with pytest.raises(WriteError, match="cannot be written"):
        remember(file, record())
    assert apply_tuned(file, LoadConfig()) == LoadConfig()


@given(st.data())
def test_a_damaged_record_counts_as_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = json.loads(record().to_json())
    place = data.draw(st.sampled_from(sorted(whole)))
    whole[place] = data.draw(
        st.one_of(
            st.none(), st.booleans(), st.text(max_size=3), st.integers(-5, 5), st.just({"n_threads": -1})
        )
    )
    path = tmp_path_factory.mktemp("records") / "r.json"
    path.write_text(json.dumps(whole))
    found = tuned.record_from_json(path)
    assert found is None or (found.settings == FOUND and found.speeds == SPEEDS)
    path.write_text(record().to_json()[: data.draw(st.integers(0, 200))])
    assert tuned.record_from_json(path) is None


@pytest.mark.parametrize(
    "change", [{"prompt_tokens": 1}, {"answer_tokens": 0}, {"depth": -1}, {"n_sessions": 0}]
)
def test_workloads_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        Workload(**change)


def test_words() -> None:
    assert describe_settings(Settings(n_threads=1)) == "1 thread"
    assert describe_settings(FOUND) == (
        "3 threads for answers, 4 for prompts, weights not rearranged, flash attention, file mapped, batches of 256"
    )
    assert "1.25 times as fast" in verdict(record())
    lines = list(explain(record()))
    assert lines[0].startswith("Round 1")
    assert "1.25  dropped" in lines[2]
