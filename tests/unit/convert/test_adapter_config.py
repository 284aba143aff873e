from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.convert.adapter_config import parse_adapter_config
from qwen_edge.errors import CheckpointError, QwenEdgeError, UnsupportedError
from tests.adapters import adapter_config

Q1 = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


def test_factor_before_the_product() -> None:
    config = parse_adapter_config(adapter_config(r=4, lora_alpha=8), "a.json")
    assert (config.rank_of(Q1), config.scaling_of(Q1)) == (4, 2.0)
    config = parse_adapter_config(adapter_config(r=4, lora_alpha=8, use_rslora=True), "a.json")
    assert config.scaling_of(Q1) == 4.0


def test_patterns_are_matched_as_peft_does() -> None:
    config = parse_adapter_config(
        adapter_config(
            rank_pattern={"down_proj": 16, r"model\.layers\.[0-3]\..*proj": 2, "proj": 99},
            alpha_pattern={"layers.1.self_attn.q_proj": 32, "^model.layers.0.mlp.(up|down)_proj": 5.5},
            use_rslora=True,
        ),
        "a.json",
    )
    assert config.rank_of(DOWN) == 16, "the first that matches counts"
    assert config.rank_of(Q1) == 2
    assert config.rank_of("model.layers.7.self_attn.q_proj") == 4, "a part of a name is no match"
    assert config.scaling_of(DOWN) == pytest.approx(5.5 / math.sqrt(16))
    assert config.scaling_of(Q1) == pytest.approx(32 / math.sqrt(2))


def test_targets_are_ends_of_names() -> None:
    config = parse_adapter_config(adapter_config(target_modules=["q_proj", "0.mlp.down_proj"]), "a.json")
    assert config.is_target(Q1)
    assert config.is_target(DOWN)
    assert not config.is_target("model.layers.1.mlp.down_proj")
    assert not config.is_target("model.layers.0.xq_proj")
    for anything in ("all-linear", ".*_proj", None):
        assert parse_adapter_config(adapter_config(target_modules=anything), "a.json").is_target(DOWN)
    part = parse_adapter_config(adapter_config(layers_to_transform=[0]), "a.json")
    assert part.targets == (), "which layers are there, the tensors tell"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "ADALORA"}, "'peft_type' is \"ADALORA\""),
        ({"peft_type": None}, "'peft_type'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"bias": "all"}, "biases were trained"),
        ({"modules_to_save": ["embed_tokens"]}, "replaces whole layers"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "repeats layers"),
        ({"trainable_token_indices": [1]}, "rows of the embedding"),
        ({"target_parameters": ["w"]}, "no linear layer"),
        ({"lora_bias": True}, "biases"),
        ({"alora_invocation_tokens": [1, 2]}, "certain tokens"),
        ({"use_qalora": True}, "groups"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*the model's own"),
        ({"init_lora_weights": ["olora"]}, "the model's own"),
        ({"rank_pattern": {"(a+)+": 3}}, "unbounded time"),
        ({"rank_pattern": {"(.|.)" * 30: 3}}, "unbounded time"),
        ({"alpha_pattern": {"a?" * 30: 3}}, "unbounded time"),
    ],
)
def test_refuses_what_would_be_lost(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as raised:
        parse_adapter_config(adapter_config(**changes), "somewhere/adapter_config.json")
    assert "somewhere/adapter_config.json" in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 0}, "'r' is 0"),
        ({"r": "8"}, "'r' is \"8\""),
        ({"r": True}, "'r' is true"),
        ({"lora_alpha": None}, "no 'lora_alpha'"),
        ({"lora_alpha": float("nan")}, "'lora_alpha' is NaN"),
        ({"lora_alpha": 0}, "'lora_alpha' is 0"),
        ({"use_rslora": 1}, "'use_rslora' is 1"),
        ({"rank_pattern": [1]}, "'rank_pattern'"),
        ({"rank_pattern": {"q_proj": 2.5}}, "'q_proj' is 2.5"),
        ({"alpha_pattern": {"q[": 2}}, "no regular expression"),
        ({"target_modules": [1]}, "'target_modules'"),
        ({"target_modules": {"a": 1}}, "'target_modules'"),
    ],
)
def test_wrong_types_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        parse_adapter_config(adapter_config(**changes), "a.json")


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_beginnings_that_leave_the_model_alone_are_taken(init: Any) -> None:
    assert parse_adapter_config(adapter_config(init_lora_weights=init), "a.json").rank == 4


@pytest.mark.parametrize("pattern", [r".*\..*\..*\..*x", r"(.*|.)\.(.*|.)x"])
def test_the_slowest_patterns_that_are_taken_come_to_an_end(pattern: str) -> None:
    config = parse_adapter_config(adapter_config(rank_pattern={pattern: 3}), "a.json")
    assert config.rank_of("model.layers.35.self_attn." + "." * 20) == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(changes=st.dictionaries(st.sampled_from(sorted(adapter_config())) | st.text(max_size=8), json_values))
def test_whatever_it_says_the_error_is_ours(changes: dict[str, Any]) -> None:
    values = json.loads(json.dumps(adapter_config(**changes)))
    try:
        config = parse_adapter_config(values, "a.json")
    except QwenEdgeError:
        return
    assert config.scaling_of(Q1) > 0
    assert 1 <= config.rank_of(Q1) <= 2**16
