from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_edge.config import LoadConfig
from qwen_edge.tune.arms import cells_of, first_arms, neighbours, thread_counts, turn_s
from qwen_edge.tuned import Settings, Workload

DEFAULT = Settings(n_threads=4)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ((1, 1, 1), (1,)),
        ((2, 2, 2), (2, 1)),
        ((4, 4, 8), (4, 3, 2, 8)),
        ((6, 2, 8), (6, 2, 5, 3, 8)),
        ((8, 4, 8), (8, 4, 7)),
    ],
)
def test_threads_that_are_tried(cores: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    assert thread_counts(*cores) == expected


def test_the_default_is_tried_first_and_every_arm_can_be_loaded() -> None:
    arms = first_arms(DEFAULT, (4, 2), is_gguf=True, may_be_fast=True, kv_types=("f16", "q8_0"))
    assert arms[0] == DEFAULT
    assert len(arms) == len(set(arms))
    for arm in arms:
        config = arm.config(LoadConfig())
        assert config.n_threads == arm.n_threads
        assert (arm.kv_type == "q8_0") <= (arm.flash_attention == "on")
    assert {arm.safe_kernels for arm in arms} == {None, True}


def test_nothing_changes_answers_unless_it_is_allowed() -> None:
    arms = first_arms(DEFAULT, (4,), is_gguf=True, may_be_fast=True, kv_types=("f16",))
    assert {arm.kv_type for arm in arms} == {"f16"}


def test_kernels_that_crash_are_not_tried() -> None:
    arms = first_arms(DEFAULT, (4,), is_gguf=True, may_be_fast=False, kv_types=("f16",))
    assert {arm.safe_kernels for arm in arms} == {None}  # loading falls back by itself


def test_onnx_runtime_has_threads_and_batches() -> None:
    arms = first_arms(DEFAULT, (4, 2), is_gguf=False, may_be_fast=False, kv_types=("f16",))
    assert [arm.n_threads for arm in arms] == [4, 2]
    near = list(neighbours(DEFAULT, (4, 2), Workload(), is_gguf=False, can_bind=True))
    assert {replace(arm, n_batch=512) for arm in near} == {DEFAULT}


def test_a_batch_longer_than_the_prompt_is_not_tried() -> None:
    short = Workload(prompt_tokens=64)
    assert {arm.n_batch for arm in neighbours(DEFAULT, (4,), short, is_gguf=True, can_bind=False)} == {512}
    long = Workload(prompt_tokens=2048)
    assert 1024 in {arm.n_batch for arm in neighbours(DEFAULT, (4,), long, is_gguf=True, can_bind=False)}


def test_arms_that_differ_where_it_does_not_matter_share_a_cell() -> None:
    prefill, decode = cells_of(DEFAULT, 128)
    assert cells_of(replace(DEFAULT, n_batch=128), 128)[1] == decode
    assert cells_of(replace(DEFAULT, n_threads=2, n_prefill_threads=4), 128)[0] == prefill
    assert cells_of(replace(DEFAULT, flash_attention="on"), 128)[1] != decode


def test_a_turn_is_what_is_read_and_what_is_written() -> None:
    workload = Workload(prompt_tokens=100, answer_tokens=50, n_sessions=2)
    assert turn_s(workload, 0.01, 0.1) == pytest.approx(2 * 100 * 0.01 + 50 * 0.1)
