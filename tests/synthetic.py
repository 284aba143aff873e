"""Checkpoints with random weights: true Qwen shapes for speed, memory and comparison, tiny ones for tests.

    python -m tests.synthetic OUT_DIR --shape 0.6b --vocab ggml-vocab-qwen2.gguf [--layers N] [--untied] [--qwen2]

The weights of a tensor depend on the seed and its name alone. They are written in pieces, so that a checkpoint
of any size takes little memory. Nothing here uses the converter: tests compare the two.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TINY_QWEN3 = ROOT / "examples" / "tiny-qwen3"

DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
PIECE_ELEMENTS = 1 << 20

SPLIT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The added tokens of Qwen3 from id 151,643 on, and whether tokenizer.json marks them as special.
QWEN3_ADDED_TOKENS = [
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    is_qwen2: bool = False
    is_tied: bool = True
    context: int = 40960


TINY = Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, ffn=48, vocab=300, context=512)
SHAPES = {
    "tiny": TINY,
    "0.6b": Shape(layers=28, hidden=1024, heads=16, kv_heads=8, head_dim=128, ffn=3072, vocab=151936),
    "1.7b": Shape(layers=28, hidden=2048, heads=16, kv_heads=8, head_dim=128, ffn=6144, vocab=151936),
    "4b": Shape(layers=36, hidden=2560, heads=32, kv_heads=8, head_dim=128, ffn=9728, vocab=151936),
}


def as_qwen2(shape: Shape) -> Shape:
    """Return the Qwen2 model of these sizes: its heads always share out the hidden size."""
    return replace(shape, is_qwen2=True, head_dim=shape.hidden // shape.heads)


def config_of(shape: Shape) -> dict[str, Any]:
    """Return config.json in the form in which Qwen publishes it."""
    family = "Qwen2" if shape.is_qwen2 else "Qwen3"
    config: dict[str, Any] = {
        "architectures": [f"{family}ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "model_type": family.lower(),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }
    if not shape.is_qwen2:
        config |= {"attention_bias": False, "head_dim": shape.head_dim}
    return config


def tensor_shapes(shape: Shape, *, has_head: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a checkpoint by name; `has_head` adds or leaves out lm_head.weight (default: untied)."""
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": (shape.hidden,),
            f"{prefix}.mlp.down_proj.weight": (shape.hidden, shape.ffn),
            f"{prefix}.mlp.gate_proj.weight": (shape.ffn, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": (shape.ffn, shape.hidden),
            f"{prefix}.post_attention_layernorm.weight": (shape.hidden,),
            f"{prefix}.self_attn.q_proj.weight": (q_rows, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv_rows, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv_rows, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": (shape.hidden, q_rows),
        }
        if shape.is_qwen2:
            for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
                tensors[f"{prefix}.self_attn.{name}_proj.bias"] = (rows,)
        else:
            tensors[f"{prefix}.self_attn.q_norm.weight"] = (shape.head_dim,)
            tensors[f"{prefix}.self_attn.k_norm.weight"] = (shape.head_dim,)
    tensors["model.norm.weight"] = (shape.hidden,)
    if has_head if has_head is not None else not shape.is_tied:
        tensors["lm_head.weight"] = (shape.vocab, shape.hidden)
    return tensors


def random_pieces(
    name: str, n_elements: int, dtype: str, seed: int, std: float = 0.02
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a tensor's weights: normal around 0, norms around 1, with standard deviation `std`."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    center = 1.0 if "norm" in name else 0.0
    for start in range(0, n_elements, PIECE_ELEMENTS):
        values = generator.standard_normal(min(PIECE_ELEMENTS, n_elements - start), dtype=np.float32)
        yield (values * np.float32(std) + np.float32(center)).astype(DTYPES[dtype])


def write_safetensors(
    path: Path,
    tensors: dict[str, tuple[int, ...]],
    *,
    dtype: str = "BF16",
    seed: int = 0,
    std: float = 0.02,
    copies: dict[str, str] | None = None,
) -> None:
    """Write random tensors.

    Args:
        path: The file.
        tensors: Name -> shape.
        dtype: "BF16", "F16" or "F32".
        seed: Other seeds give other weights.
        std: Their standard deviation.
        copies: Name -> the name of the tensor of which it is a copy.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in tensors.items():
            for piece in random_pieces((copies or {}).get(name, name), math.prod(shape), dtype, seed, std):
                file.write(piece.tobytes())


def tiny_tokenizer(vocab: int = TINY.vocab) -> dict[str, Any]:
    """Return a tokenizer.json of 256 bytes, some merges and the chat's special tokens, with padding ids left."""
    merges = ["t h", "th e", "Ġ the", "Ġ a", "i n", "in g", "Ġ Ġ", "Ċ Ċ"]
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    added = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False)]
    assert len(tokens) + len(added) <= vocab
    return tokenizer_json({token: index for index, token in enumerate(tokens)}, merges, added)


def qwen_tokenizer(vocab_gguf: Path) -> dict[str, Any]:
    """Return the full Qwen3 tokenizer.json, made from llama.cpp's models/ggml-vocab-qwen2.gguf."""
    import gguf

    reader = gguf.GGUFReader(vocab_gguf)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    vocab = {token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1}
    return tokenizer_json(vocab, merges, QWEN3_ADDED_TOKENS)


def tokenizer_json(vocab: dict[str, int], merges: list[str], added: list[tuple[str, bool]]) -> dict[str, Any]:
    """Return tokenizer.json as Qwen publishes it; added tokens get the ids after the vocabulary's."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(vocab) + index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": is_special,
            }
            for index, (content, is_special) in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level BPE."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_side_files(folder: Path, shape: Shape, tokenizer: dict[str, Any]) -> None:
    """Write all files of a checkpoint but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    end_of_text, end_of_turn = added["<|endoftext|>"]["id"], added["<|im_end|>"]["id"]
    write_json(
        folder / "config.json", config_of(shape) | {"bos_token_id": end_of_text, "eos_token_id": end_of_turn}
    )
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": end_of_text,
            "do_sample": True,
            "eos_token_id": [end_of_turn, end_of_text],
            "pad_token_id": end_of_text,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        },
    )
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in added.values()
            },
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    shutil.copyfile(TINY_QWEN3 / "chat_template.jinja", folder / "chat_template.jinja")


def write_checkpoint(
    folder: Path,
    shape: Shape = TINY,
    *,
    tokenizer: dict[str, Any] | None = None,
    n_shards: int = 1,
    has_head: bool | None = None,
    dtype: str = "BF16",
    seed: int = 0,
    std: float = 0.02,
) -> Path:
    """Write a whole checkpoint and return its folder.

    Args:
        folder: Made where absent.
        shape: The sizes.
        tokenizer: tokenizer.json (default: the tiny one).
        n_shards: 1, or more with an index.
        has_head: Whether lm_head.weight is there (default: where the head is untied). Of a tied head it is a copy.
        dtype: Of the weights.
        seed: Of the weights.
        std: Of the weights; 0.02 in a tiny model makes all tokens nearly equal.
    """
    write_side_files(folder, shape, tokenizer or tiny_tokenizer(shape.vocab))
    tensors = tensor_shapes(shape, has_head=has_head)
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if shape.is_tied else {}
    if n_shards == 1:
        write_safetensors(
            folder / "model.safetensors", tensors, dtype=dtype, seed=seed, std=std, copies=copies
        )
        return folder
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(n_shards):
        file_name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[shard * len(names) // n_shards : (shard + 1) * len(names) // n_shards]
        write_safetensors(
            folder / file_name,
            {name: tensors[name] for name in part},
            dtype=dtype,
            seed=seed,
            std=std,
            copies=copies,
        )
        weight_map |= dict.fromkeys(part, file_name)
    total_bytes = sum(math.prod(shape) for shape in tensors.values()) * DTYPES[dtype].itemsize
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total_bytes}, "weight_map": weight_map},
    )
    return folder


def main() -> None:
    """Write a checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument(
        "--vocab", type=Path, help="llama.cpp's models/ggml-vocab-qwen2.gguf; needed for full vocabularies"
    )
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument(
        "--no-head-copy", action="store_true", help="of a tied head, leave out lm_head.weight"
    )
    parser.add_argument("--qwen2", action="store_true", help="QKV bias, no QK norm")
    parser.add_argument("--dtype", choices=DTYPES, default="BF16")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if shape.vocab > TINY.vocab and options.vocab is None:
        parser.error("this shape needs --vocab")
    shape = replace(shape, layers=options.layers or shape.layers, is_tied=not options.untied)
    if options.qwen2:
        shape = as_qwen2(shape)
    write_checkpoint(
        options.folder,
        shape,
        tokenizer=qwen_tokenizer(options.vocab) if options.vocab else None,
        n_shards=options.shards,
        has_head=not options.no_head_copy,
        dtype=options.dtype,
        seed=options.seed,
    )
    print(json.dumps({"folder": str(options.folder), **asdict(shape)}))  # noqa: T201


if __name__ == "__main__":
    main()
