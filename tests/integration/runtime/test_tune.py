"""Tuning on real engines: the tiny model, both forms. Which setting wins is not asserted: it is a measurement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import qwen_edge
from qwen_edge import device
from qwen_edge.bench import BenchConfig, run_benchmark
from qwen_edge.bench import Workload as BenchWorkload
from qwen_edge.cli.main import main
from qwen_edge.config import GREEDY, LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import ConfigError, InsufficientMemoryError
from qwen_edge.tune import worker
from qwen_edge.tune.finding import tune_file
from qwen_edge.tune.speculating import read_prompts, with_speculation
from qwen_edge.tune.trials import Trials
from qwen_edge.tune.worker import Job
from qwen_edge.tuned import Settings, TuneRecord, Workload, find_record, forget, remember

WORKLOAD = Workload(prompt_tokens=16, answer_tokens=8, depth=24)


@pytest.fixture
def tuned(tiny_path: Path) -> Iterator[TuneRecord]:
    record = tune_file(tiny_path, WORKLOAD, budget_s=5)
    yield record
    forget(tiny_path)


def test_tuning_measures_and_says_what_it_tried(tiny_path: Path, tuned: TuneRecord) -> None:
    assert tuned.workload == WORKLOAD
    assert next(step["round"] for step in tuned.steps) == "first"
    assert tuned.steps[-1]["round"] == "last"
    assert tuned.gain >= 1.0
    for speeds in tuned.speeds.values():
        assert all(value > 0 for value in speeds.values())
    tried = [Settings(**row["settings"]) for step in tuned.steps for row in step["tried"]]
    assert len(set(tried)) > 1
    assert tuned.settings in tried
    assert {arm.safe_kernels for arm in tried} == ({None} if is_onnx(tiny_path) else {None, True})


def test_a_loaded_model_runs_with_what_was_found(tiny_bf16: Path) -> None:
    found = Settings(n_threads=1, n_prefill_threads=2, n_batch=32, flash_attention="on", affinity="cores")
    plain = TuneRecord(
        settings=found,
        workload=WORKLOAD,
        speeds={name: {"prefill": 1.0, "decode": 1.0, "turn_s": 1.0} for name in ("default", "tuned")},
        seconds=1.0,
        measured_at=0.0,
    )
    prompt = "What is the capital of Greece?"
    with qwen_edge.load(tiny_bf16, n_threads=1, safe_kernels=False) as model, model.session() as session:
        expected = session.send(prompt, thinking="off", sampling=GREEDY).text
    remember(tiny_bf16, plain)
    try:
        with qwen_edge.load(tiny_bf16) as model, model.session() as session:
            settings = model.info.settings
            assert (settings["threads"], settings["prefill_threads"], settings["n_batch"]) == (1, 2, 32)
            assert (settings["flash_attention"], settings["affinity"]) == ("on", "cores")
            assert session.send(prompt, thinking="off", sampling=GREEDY).text == expected
        with qwen_edge.load(tiny_bf16, tuned=False, n_threads=1) as model:
            assert model.info.settings["flash_attention"] == "off"
    finally:
        forget(tiny_bf16)


def test_a_benchmark_measures_the_settings_that_it_states(tiny_bf16: Path) -> None:
    found = TuneRecord(
        settings=Settings(n_threads=1, n_batch=32, flash_attention="on"),
        workload=WORKLOAD,
        speeds={name: {"prefill": 1.0, "decode": 1.0, "turn_s": 1.0} for name in ("default", "tuned")},
        seconds=1.0,
        measured_at=0.0,
    )
    remember(tiny_bf16, found)
    try:
        with qwen_edge.load(tiny_bf16) as model:
            assert model.info.settings["flash_attention"] == "on"
        config = BenchConfig(
            workload=BenchWorkload(prompt_tokens=8, generate_tokens=4), repetitions=1, n_threads=1
        )
        [result] = run_benchmark([tiny_bf16], config).results
        assert (result.settings["flash_attention"], result.settings["n_batch"]) == ("off", 512)
    finally:
        forget(tiny_bf16)


def test_found_settings_that_need_too_much_are_left_out(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Settings(n_threads=1, n_batch=1024)
    record = TuneRecord(
        settings=found,
        workload=WORKLOAD,
        speeds={name: {"prefill": 1.0, "decode": 1.0, "turn_s": 1.0} for name in ("default", "tuned")},
        seconds=1.0,
        measured_at=0.0,
    )
    remember(tiny_bf16, record)
    from qwen_edge import model as model_module

    whole = model_module.require_memory

    def refuse_large(path: Path, config: LoadConfig) -> LoadConfig:
        if config.n_batch > 512:
            raise InsufficientMemoryError("too much")
        return whole(path, config)

    monkeypatch.setattr(model_module, "require_memory", refuse_large)
    try:
        with qwen_edge.load(tiny_bf16, n_threads=1) as model:
            assert model.info.settings["n_batch"] == 512
        with pytest.raises(InsufficientMemoryError):
            qwen_edge.load(tiny_bf16, n_batch=2048)
    finally:
        forget(tiny_bf16)


def test_prompt_lookup_is_tried_on_the_users_own_prompts(tiny_path: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('What is the capital of Greece?\n\n"Say Anna.\\nSay Bob."\n"not closed\n')
    texts = read_prompts(prompts)
    assert texts == ["What is the capital of Greece?", "Say Anna.\nSay Bob.", '"not closed']
    plain = TuneRecord(
        settings=Settings(n_threads=1),
        workload=WORKLOAD,
        speeds={name: {"prefill": 1.0, "decode": 1.0, "turn_s": 1.0} for name in ("default", "tuned")},
        seconds=1.0,
        measured_at=0.0,
    )
    found = with_speculation(tiny_path, plain, texts[:1])
    assert found.speculation_gain is not None
    assert found.speculation_gain > 0
    assert (found.speculation == "prompt_lookup") == (found.speculation_gain >= 1.05)
    with pytest.raises(ConfigError, match="one session"):
        with_speculation(tiny_path, replace(plain, workload=Workload(n_sessions=2)), texts)
    prompts.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompts(prompts)
    prompts.write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_prompts(prompts)


def test_several_sessions_at_once(tiny_path: Path, tmp_path: Path) -> None:
    work = worker.Worker(tiny_path, tmp_path)
    job = Job(phase="decode", settings=Settings(n_threads=1), n_tokens=0, depth=8, n_sessions=3, n_ctx=64)
    assert work.run(job) > 0
    assert work.run(replace(job, phase="prefill", n_tokens=12)) > 0
    assert work.run(replace(job, n_sessions=1)) > 0


def test_a_child_that_dies_costs_its_settings_only(tiny_bf16: Path) -> None:
    job = Job(phase="decode", settings=Settings(n_threads=1), n_tokens=0, depth=0, n_sessions=1, n_ctx=64)
    with Trials(tiny_bf16, lambda config: 0) as trials:
        assert trials.sample(job)
        [process] = trials._children.values()
        process.kill()
        process.wait()
        assert trials.sample(job) is None
        assert "SIGKILL" in trials.errors[job.settings]
        assert trials.sample(job)  # another child takes its place


def test_settings_that_do_not_fit_are_not_tried(tiny_bf16: Path) -> None:
    job = Job(phase="decode", settings=Settings(n_threads=1), n_tokens=0, depth=0, n_sessions=1, n_ctx=64)
    with Trials(tiny_bf16, lambda config: 1 << 60) as trials:
        assert trials.sample(job) is None
        assert "GB are free" in trials.errors[job.settings]


def test_children_share_the_memory_there_is(tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = Settings(n_threads=1, safe_kernels=True), Settings(n_threads=1)
    job = Job(phase="decode", settings=plain, n_tokens=0, depth=0, n_sessions=1, n_ctx=64)

    with Trials(tiny_bf16, lambda config: 100) as trials:
        room = device.available_memory_bytes()
        monkeypatch.setattr(
            device,
            "available_memory_bytes",
            lambda: replace(room, available_bytes=150 - 100 * len(trials._children)),
        )
        assert trials.sample(job)
        assert trials.sample(replace(job, settings=packed))
        assert list(trials._children) == [trials.group_of(packed)]  # the first made room


def test_command_line(tiny_bf16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["tune", str(tiny_bf16)]
    assert main([*tune, "--explain"]) == 1
    assert "was not tuned on this machine" in capsys.readouterr().err
    options = ["--budget", "5", "--prompt-tokens", "16", "--answer-tokens", "8", "--depth", "0"]
    assert main([*tune, *options, "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = find_record(tiny_bf16)
    assert record is not None
    assert printed["settings"] == json.loads(record.to_json())["settings"]
    assert main([*tune, "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "Round 1" in shown
    assert "a turn, seconds" in shown
    assert main([*tune, "--forget"]) == 0
    assert find_record(tiny_bf16) is None
