"""Faults of checkpoints and adapters, met by `convert`."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests import synthetic
from tests.adapters import write_adapter
from tests.faults.running import Fault, nothing
from tests.faults.world import World, cut, edit_json, safetensors_header, set_safetensors_header, set_weight

_WEIGHTS = "model.safetensors"
_SHARD = "model-00002-of-00002.safetensors"
_INDEX = "model.safetensors.index.json"
_NORM = "model.norm.weight"


def _row(
    name: str,
    make: Callable[[World], object] = nothing,
    command: str = "convert ckpt -o m.gguf",
    **more: object,
) -> Fault:
    return Fault(group="Checkpoints", name=name, make=make, command=command, **more)  # type: ignore[arg-type]


def _config(**changes: object) -> Callable[[World], None]:
    return lambda world: edit_json(world.checkpoint() / "config.json", **changes)


def _header_length(world: World) -> None:
    path = world.checkpoint() / _WEIGHTS
    set_safetensors_header(path, safetensors_header(path), 1 << 40)


def _without_tensor(world: World) -> None:
    tensors = synthetic.tensor_shapes(synthetic.TINY)
    del tensors[_NORM]
    synthetic.write_safetensors(world.checkpoint() / _WEIGHTS, tensors)


def _with_foreign_tensor(world: World) -> None:
    tensors = synthetic.tensor_shapes(synthetic.TINY) | {"visual.blocks.0.weight": (32, 32)}
    synthetic.write_safetensors(world.checkpoint() / _WEIGHTS, tensors)


def _in_two_shards(world: World) -> None:
    first, second = sorted(world.take("ckpt").glob("*.safetensors"))
    shapes = {
        name: tuple(entry["shape"])
        for path in (second, first)
        for name, entry in safetensors_header(path).items()
        if name != "__metadata__"
    }
    synthetic.write_safetensors(second, shapes)


def _index_with(world: World, name: str, file: str) -> None:
    path = world.take("ckpt") / _INDEX
    index = json.loads(path.read_text())
    index["weight_map"][name] = file
    path.write_text(json.dumps(index))


def _adapter(world: World, **shape: int) -> None:
    world.checkpoint()
    from dataclasses import replace

    base = synthetic.write_checkpoint(world.folder / "other", replace(synthetic.TINY, **shape))
    write_adapter(world.folder / "adapter", base)


ROWS = (
    _row("no such folder", command="convert nothing -o m.gguf"),
    _row("a name with a typing error", command="convert qwen3-0.6 -o m.gguf"),
    _row("an empty folder", lambda world: (world.folder / "ckpt").mkdir()),
    _row("no weights", lambda world: (world.checkpoint() / _WEIGHTS).unlink()),
    _row("weights of no bytes", lambda world: cut(world.checkpoint() / _WEIGHTS, 0)),
    _row("weights cut off in the header", lambda world: cut(world.checkpoint() / _WEIGHTS, 200)),
    _row("weights cut off in the data", lambda world: cut(world.checkpoint() / _WEIGHTS, -100)),
    _row("a header longer than the file", _header_length),
    _row(
        "a header that is no JSON", lambda world: set_safetensors_header(world.checkpoint() / _WEIGHTS, b"{[}")
    ),
    _row("a web page under the name of the weights", lambda world: (world.checkpoint() / _WEIGHTS).write_text("<!doctype html><title>Sign in</title>")),
    _row("a shard missing", lambda world: (world.take("ckpt") / _SHARD).unlink()),
    _row("an index that is no JSON", lambda world: cut(world.take("ckpt") / _INDEX, 50)),
    _row("an index that names a tensor of no file", lambda world: _index_with(world, "model.layers.9.mlp.up_proj.weight", _SHARD)),
    _row("a tensor in two shards", _in_two_shards),
    _row("no config.json", lambda world: (world.checkpoint() / "config.json").unlink()),
    _row("config.json cut off", lambda world: cut(world.checkpoint() / "config.json", 60)),
    _row("another architecture", _config(architectures=["LlamaForCausalLM"], model_type="llama")),
    _row("shapes that contradict config.json", _config(hidden_size=64)),
    _row("more layers in config.json than in the weights", _config(num_hidden_layers=3)),
    _row("a tensor missing", _without_tensor),
    _row("a tensor of another model", _with_foreign_tensor),
    _row("weights quantized to FP8", _config(quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic"})),
    _row("weights quantized by GPTQ", _config(quantization_config={"quant_method": "gptq", "bits": 4})),
    _row("weights quantized by AWQ", _config(quantization_config={"quant_method": "awq", "bits": 4})),
    _row("a weight that is NaN", lambda world: set_weight(world.checkpoint() / _WEIGHTS, "model.layers.0.mlp.up_proj.weight", 0x7FC0)),
    _row("a weight that is infinite", lambda world: set_weight(world.checkpoint() / _WEIGHTS, "model.layers.0.mlp.up_proj.weight", 0x7F80)),
    _row("a weight that is NaN, to ONNX", lambda world: set_weight(world.checkpoint() / _WEIGHTS, "model.layers.0.mlp.up_proj.weight", 0x7FC0),
         "convert ckpt --to onnx --weights int4 -o onnx"),
    _row("a weight beyond F16", lambda world: set_weight(world.checkpoint() / _WEIGHTS, "model.layers.0.mlp.up_proj.weight", 0x7F00),
         "convert ckpt --dtype f16 -o m.gguf"),
    _row("no tokenizer.json", lambda world: (world.checkpoint() / "tokenizer.json").unlink()),
    _row("tokenizer.json cut off", lambda world: cut(world.checkpoint() / "tokenizer.json", 1000)),
    _row("only weights that are pickles", lambda world: (world.checkpoint() / _WEIGHTS).rename(world.folder / "ckpt" / "pytorch_model.bin")),
    _row("a GGUF file instead of a checkpoint", lambda world: world.take("m.gguf"), "convert m.gguf -o x.gguf"),
    _row("weights that may not be read", lambda world: (world.checkpoint() / _WEIGHTS).chmod(0), is_no_root=True),
    _row("an adapter that is not there", lambda world: world.checkpoint(), "convert ckpt --adapter nothing -o m.gguf"),
    _row("an adapter for another model", lambda world: _adapter(world, hidden=64), "convert ckpt --adapter adapter -o m.gguf"),
    _row("an adapter as the checkpoint", _adapter, "convert adapter -o m.gguf"),
    _row("--base without an adapter", lambda world: world.checkpoint(), "convert ckpt --base ckpt -o m.gguf"),
    _row("an unknown type", lambda world: world.checkpoint(), "convert ckpt --dtype bf17 -o m.gguf"),
)  # fmt: skip
