from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.convert.qwen import expected_tensors, parse_config
from qwen_edge.convert.rope import Rope, RopeScaling
from qwen_edge.errors import CheckpointError, QwenEdgeError, UnsupportedError
from tests import synthetic

# A loaded machine is no failure.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

QWEN3 = synthetic.config_of(synthetic.TINY)
QWEN2 = synthetic.config_of(synthetic.as_qwen2(synthetic.TINY))


def _parse(config: dict[str, Any], **changes: Any) -> Any:
    return parse_config({**config, **changes}, "x/config.json")


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize(
    "shape", [synthetic.TINY, synthetic.as_qwen2(synthetic.TINY), synthetic.SHAPES["0.6b"]]
)
@pytest.mark.parametrize("is_tied", [True, False])
def test_expects_the_tensors_that_a_checkpoint_has(shape: synthetic.Shape, is_tied: bool) -> None:
    shape = replace(shape, is_tied=is_tied)
    expected = expected_tensors(parse_config(synthetic.config_of(shape), "config.json"))
    found = {name.removeprefix("model."): sizes for name, sizes in synthetic.tensor_shapes(shape).items()}
    assert {tensor.name: tensor.shape for tensor in expected} == found
    assert len({tensor.gguf_name for tensor in expected}) == len(expected)


def test_reads_a_published_config() -> None:
    config = parse_config(synthetic.config_of(synthetic.SHAPES["0.6b"]), "config.json")
    assert (config.architecture, config.n_layers, config.hidden_size, config.ffn_size) == (
        "qwen3",
        28,
        1024,
        3072,
    )
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size) == (16, 8, 128, 151936)
    assert (config.rope.theta, config.rms_norm_eps, config.is_tied, config.n_ctx_train) == (
        1e6,
        1e-6,
        True,
        40960,
    )


def test_head_dim_is_hidden_size_over_heads_where_it_is_absent() -> None:
    config = _parse(_without(QWEN3, "head_dim"))
    assert config.head_dim == synthetic.TINY.hidden // synthetic.TINY.heads
    assert not config.head_dim_is_stated
    assert _parse(QWEN3, head_dim=None).head_dim == config.head_dim


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": None},
    ],
)
def test_rope_theta_in_all_its_places(rope: dict[str, Any]) -> None:
    assert _parse(_without(QWEN3, "rope_theta", "rope_scaling"), **rope).rope == Rope(theta=5e5)


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_type_of_the_weights_may_stand_under_either_name(key: str) -> None:
    assert _parse(_without(QWEN3, "torch_dtype"), **{key: "bfloat16"}) == _parse(QWEN3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM.*Qwen3ForCausalLM"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"architectures": [{"a": 1}]}, "architectures"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
            "'rope_scaling' asks for rope type 'dynamic'",
        ),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 4.0}}, "'linear' and 'yarn'"),
        ({"rope_scaling": {"rope_type": "default", "type": "longrope"}}, "'longrope'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}},
            "'rope_parameters' asks for .*'llama3'",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e6}}, "a part of each head"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"is_causal": False}, "is_causal"),
    ],
)
def test_what_would_be_lost_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as raised:
        _parse(QWEN3, **changes)
    assert "x/config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "no 'hidden_size', expected an integer"),
        ({"hidden_size": "32"}, "'hidden_size' is \"32\""),
        ({"hidden_size": 32.0}, "'hidden_size' is 32.0"),
        ({"hidden_size": True}, "'hidden_size' is true"),
        ({"hidden_size": 0}, "'hidden_size' is 0"),
        ({"num_hidden_layers": 10**6}, r"'num_hidden_layers' is 1000000, expected an integer in 1\.\.512"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"num_key_value_heads": 8}, "'num_key_value_heads' is 8"),
        ({"head_dim": None, "hidden_size": 30}, "not a multiple of 4 heads"),
        ({"rms_norm_eps": -1}, "'rms_norm_eps' is -1"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is NaN"),
        ({"rope_theta": None}, "no 'rope_theta'"),
        ({"rope_theta": 0}, "'rope_theta' is 0"),
        ({"rope_scaling": "yarn"}, "'rope_scaling' is \"yarn\", expected an object"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is \"yes\", expected true or false"),
        ({"layer_types": "full"}, "'layer_types' is \"full\", expected a list"),
        ({"hidden_act": 7}, "'hidden_act' is 7, expected a string"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as raised:
        _parse(QWEN3, **changes)
    assert "x/config.json" in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
extra_keys = ["rope_parameters", "layer_types", "quantization_config", "is_causal", "head_dim", "dtype"]


@patiently
@given(
    config=st.sampled_from([QWEN2, QWEN3]),
    changes=st.dictionaries(st.sampled_from([*QWEN3, *extra_keys]), json_values, max_size=4),
)
def test_any_config_ends_in_parameters_or_in_our_error(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        parsed = _parse(config, **changes)
    except QwenEdgeError:
        return
    assert expected_tensors(parsed)


@patiently
@given(
    rope=st.dictionaries(
        st.sampled_from(
            [
                "rope_theta",
                "partial_rotary_factor",
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ]
        ),
        json_values | st.floats(0.5, 1e3),
    ),
    kind=st.sampled_from(["default", "linear", "yarn", "dynamic"]) | json_values,
    key=st.sampled_from(["rope_scaling", "rope_parameters"]),
)
def test_any_rope_ends_in_angles_or_in_our_error(rope: dict[str, Any], kind: Any, key: str) -> None:
    try:
        parsed = _parse(QWEN3, **{key: {"rope_type": kind, "factor": 4.0} | rope})
    except QwenEdgeError:
        return
    frequencies = parsed.rope.frequencies(parsed.head_dim)
    assert frequencies.shape == (parsed.head_dim // 2,)
    assert np.isfinite(frequencies).all()
    assert (frequencies > 0).all()


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_yarn_is_read_in_both_places(place: str) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    rope = _parse(_without(QWEN3, "rope_scaling"), **{place: yarn}).rope
    assert rope.theta == 1e6
    assert rope.scaling == RopeScaling(
        kind="yarn", factor=4.0, n_ctx_original=128, attention_factor=pytest.approx(0.1 * math.log(4) + 1)
    )


def test_yarn_has_other_attention_factors_too() -> None:
    yarn = {"type": "yarn", "factor": 4.0}
    assert _parse(QWEN3, rope_scaling=yarn).rope.scaling.n_ctx_original == synthetic.TINY.context  # type: ignore[union-attr]
    stated = _parse(QWEN3, rope_scaling=yarn | {"attention_factor": 1.5}).rope.scaling
    assert stated is not None
    assert stated.attention_factor == 1.5
    weighed = _parse(QWEN3, rope_scaling=yarn | {"mscale": 2.0, "mscale_all_dim": 2.0}).rope.scaling
    assert weighed is not None
    assert weighed.attention_factor == 1.0


def test_contradicting_scalings_are_refused() -> None:
    with pytest.raises(CheckpointError, match="different scalings"):
        _parse(
            QWEN3,
            rope_scaling={"type": "yarn", "factor": 4.0},
            rope_parameters={"rope_type": "yarn", "factor": 2.0},
        )
