"""The trained checkpoint of the repository, converted and read back."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from qwen_edge.convert import convert_checkpoint
from qwen_edge.convert.dtypes import OutputType
from tests.integration.convert.tokenization import LlamaVocabulary, differences, varied_texts
from tests.synthetic import TINY_QWEN3

N_TEXTS = 10_000

# GGUF name -> name in the checkpoint, written out here once more: the converter's table is what is tested.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _name_in_checkpoint(gguf_name: str) -> str:
    if gguf_name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if gguf_name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, name, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[name]}.weight"


@pytest.fixture(scope="module", params=["bf16", "f16", "f32"])
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, OutputType]:
    dtype: OutputType = request.param
    target = tmp_path_factory.mktemp("converted") / f"tiny-{dtype}.gguf"
    convert_checkpoint(TINY_QWEN3, target, dtype=dtype)
    return target, dtype


def test_every_tensor_is_bitwise_that_of_the_checkpoint(converted: tuple[Path, OutputType]) -> None:
    path, dtype = converted
    weights = load_file(TINY_QWEN3 / "model.safetensors")
    tensors = gguf.GGUFReader(path).tensors
    assert {_name_in_checkpoint(tensor.name) for tensor in tensors} == weights.keys()
    for tensor in tensors:
        weight = weights[_name_in_checkpoint(tensor.name)]
        stored = "F32" if weight.ndim == 1 else dtype.upper()
        assert tensor.tensor_type is gguf.GGMLQuantizationType[stored]
        assert list(reversed(tensor.shape)) == list(weight.shape)
        expected = gguf.quants.quantize(weight.astype(np.float32), tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name
        if stored == "BF16":
            assert tensor.data.tobytes() == weight.tobytes(), "bf16 keeps the checkpoint's own bits"


def test_metadata_is_that_of_the_checkpoint(converted: tuple[Path, OutputType]) -> None:
    path, _ = converted
    keys = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    config = json.loads((TINY_QWEN3 / "config.json").read_text())
    assert keys["qwen3.block_count"] == config["num_hidden_layers"]
    assert keys["qwen3.attention.key_length"] == config["head_dim"]
    assert keys["tokenizer.ggml.eos_token_id"] == config["eos_token_id"]
    assert keys["tokenizer.ggml.bos_token_id"] == config["bos_token_id"]
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"] == (TINY_QWEN3 / "chat_template.jinja").read_text()


def test_llama_cpp_splits_text_as_the_checkpoint_does(converted: tuple[Path, OutputType]) -> None:
    path, _ = converted
    tokenizer = Tokenizer.from_file(str(TINY_QWEN3 / "tokenizer.json"))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = varied_texts(N_TEXTS, special)
    assert len(set(texts)) > 0.9 * N_TEXTS
    with LlamaVocabulary(path) as vocabulary:
        assert differences(vocabulary, tokenizer, texts) == []
        assert vocabulary.is_end(tokenizer.token_to_id("<|im_end|>"))


def test_the_comparison_of_tokens_notices_a_difference(tmp_path: Path) -> None:
    tokenizer_json = json.loads((TINY_QWEN3 / "tokenizer.json").read_text())
    del tokenizer_json["model"]["merges"][100]
    target = tmp_path / "tiny.gguf"
    convert_checkpoint(TINY_QWEN3, target)
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json))
    with LlamaVocabulary(target) as vocabulary:
        assert differences(vocabulary, tokenizer, varied_texts(1000, ["<|im_end|>"]))
