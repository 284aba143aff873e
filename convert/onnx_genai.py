"""The configuration file with which onnxruntime-genai loads an exported folder.

Source: onnxruntime-genai, src/config.h and the "Config reference" of its documentation.
"""

from __future__ import annotations

from typing import Any

from qwen_edge.convert.json_files import Fields
from qwen_edge.convert.qwen import QwenConfig

CONFIG_NAME = "genai_config.json"
GENAI_MODEL_NAME = "model.genai.onnx"

# generation_config.json -> "search" of the file, where the keys are the same and so is their meaning.
_SEARCH_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def genai_config(
    config: QwenConfig, generation: dict[str, Any], special_ids: dict[str, int]
) -> dict[str, Any]:
    """Return the document.

    Args:
        config: Of the model.
        generation: generation_config.json, {} where there is none.
        special_ids: Kind ("bos", "eos", "pad") to token, from the tokenizer.
    """
    ends = end_tokens(generation, special_ids)
    model: dict[str, Any] = {
        "type": config.architecture,
        "context_length": config.n_ctx_train,
        "vocab_size": config.vocab_size,
        "eos_token_id": ends,
        "pad_token_id": special_ids.get("pad", ends[0] if ends else 0),
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": GENAI_MODEL_NAME,
            "head_size": config.head_dim,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.n_heads,
            "num_hidden_layers": config.n_layers,
            "num_key_value_heads": config.n_kv_heads,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    if "bos" in special_ids:
        model["bos_token_id"] = special_ids["bos"]
    search = {key: generation[key] for key in _SEARCH_KEYS if key in generation}
    return {
        "model": model,
        "search": {"max_length": config.n_ctx_train, "past_present_share_buffer": True, **search},
    }


def end_tokens(generation: dict[str, Any], special_ids: dict[str, int]) -> list[int]:
    """Return the tokens that end a reply, the usual one first.

    Raises:
        CheckpointError: generation_config.json names something else than tokens.
    """
    fields = Fields(generation, "generation_config.json")
    if "eos_token_id" in fields and not isinstance(generation["eos_token_id"], list):
        return [fields.integer("eos_token_id", low=0, high=2**31 - 1)]
    named = [
        Fields({"eos_token_id": token}, fields.where).integer("eos_token_id", low=0, high=2**31 - 1)
        for token in fields.items("eos_token_id")
    ]
    return named or ([special_ids["eos"]] if "eos" in special_ids else [])
