"""Faults of GGUF files and ONNX folders, met by `run`, `quantize` and `verify`."""

from __future__ import annotations

import os
from collections.abc import Callable

import gguf
import numpy as np

from tests import synthetic
from tests.adapters import write_adapter
from tests.faults.running import Fault, nothing
from tests.faults.world import World, cut, edit_json, overwrite, tensor_offset

_RUN = "run m.gguf Hi --max-tokens 4 --threads 1 --n-ctx 256"
_RUN_ONNX = "run onnx Hi --max-tokens 4 --threads 1 --n-ctx 256"
_QUANTIZE = "quantize m.gguf -t q8_0 -o x.gguf"


def _row(
    group: str, name: str, command: str, make: Callable[[World], object] = nothing, **more: object
) -> Fault:
    return Fault(group=group, name=name, make=make, command=command, **more)  # type: ignore[arg-type]


def _gguf(name: str, make: Callable[[World], object] = nothing, command: str = _RUN, **more: object) -> Fault:
    return _row("GGUF files", name, command, make, **more)


def _onnx(name: str, make: Callable[[World], object], command: str = _RUN_ONNX, **more: object) -> Fault:
    return _row("ONNX folders", name, command, make, **more)


def _written(name: str, architecture: str = "qwen3", *, twice: bool = False) -> Callable[[World], None]:
    """Return what writes a GGUF file with two vectors in it."""

    def make(world: World) -> None:
        path = world.folder / name
        writer = gguf.GGUFWriter(path, architecture)
        for tensor in ("blk.0.attn_norm.weight", "blk.1.attn_norm.weight"):
            writer.add_tensor(tensor, np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if twice:
            path.write_bytes(path.read_bytes().replace(b"blk.1.", b"blk.0."))

    return make


def _nan_scale(world: World) -> None:
    path = world.take("q8.gguf", "m.gguf")
    overwrite(path, tensor_offset(path, "blk.0.ffn_up.weight"), b"\x00\x7e")


def _all_nan(world: World) -> None:
    path = world.take("q8.gguf", "m.gguf")
    for name in ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"):
        for row in range(32):
            overwrite(path, tensor_offset(path, name) + row * 68, b"\x00\x7e")


def _adapter_gguf(world: World) -> None:
    from dataclasses import replace

    from tests.faults.running import run_whole

    base = synthetic.write_checkpoint(world.folder / "other", replace(synthetic.TINY, hidden=64))
    write_adapter(world.folder / "adapter", base)
    run_whole("convert", "adapter", "--base", "other", "-o", "adapter.gguf", cwd=world.folder)
    world.take("m.gguf")


GGUF_ROWS = (
    _gguf("no such file"),
    _gguf("a name with a typing error", command="run qwen3-0.6 Hi"),
    _gguf("a model that is not here yet", command="run qwen3-0.6b Hi"),
    _gguf("a type that is not here", command="run qwen3-0.6b@q4_0 Hi"),
    _gguf("an unknown type of a model", command="run qwen3-0.6b@q4_x Hi"),
    _gguf("a file of no bytes", lambda world: (world.folder / "m.gguf").touch()),
    _gguf("a file cut off in the header", lambda world: cut(world.take("m.gguf"), 500)),
    _gguf("a file cut off in the weights", lambda world: cut(world.take("m.gguf"), -5000)),
    _gguf("a file cut off after its first bytes", lambda world: cut(world.take("m.gguf"), 4)),
    _gguf("a text file", lambda world: (world.folder / "m.gguf").write_text("Not found\n")),
    _gguf("a file of the format before GGUF", lambda world: overwrite(world.take("m.gguf"), 0, b"lmgg")),
    _gguf("a big-endian file", lambda world: overwrite(world.take("m.gguf"), 4, b"\0\0\0\3")),
    _gguf("a file of version 99", lambda world: overwrite(world.take("m.gguf"), 4, b"\x63\0\0\0")),
    _gguf("bytes of the header overwritten", lambda world: overwrite(world.take("m.gguf"), 60, b"\xff" * 40)),
    _gguf("a tensor twice in one file", _written("m.gguf", twice=True)),
    _gguf("a model without its sizes", _written("m.gguf")),
    _gguf("an unknown architecture", _written("m.gguf", "qwen9")),
    _gguf("a folder", lambda world: (world.folder / "m.gguf").mkdir()),
    _gguf("a checkpoint", lambda world: world.checkpoint(), "run ckpt Hi"),
    _gguf("a pipe", lambda world: os.mkfifo(world.folder / "m.gguf")),
    _gguf("a device", command="run /dev/null Hi"),
    _gguf("a file that may not be read", lambda world: world.take("m.gguf").chmod(0), is_no_root=True),
    _gguf("one scale that is NaN", _nan_scale),
    _gguf("scales that are NaN everywhere", _all_nan),
    _gguf("an adapter that is not there", lambda world: world.take("m.gguf"), f"{_RUN} --adapter nothing.gguf"),
    _gguf("an adapter for another model", _adapter_gguf, f"{_RUN} --adapter adapter.gguf"),
    _gguf("an adapter as the model", _adapter_gguf, _RUN.replace("m.gguf", "adapter.gguf")),
    _gguf("a model as the adapter", lambda world: world.take("m.gguf"), f"{_RUN} --adapter m.gguf"),
    _gguf("a file of another checkpoint", lambda world: (world.checkpoint(seed=5), world.take("m.gguf")), "verify m.gguf --against ckpt --threads 1"),
)  # fmt: skip

QUANTIZE_ROWS = tuple(
    _row("Quantizing", *row[:2], row[2] if len(row) > 2 else nothing, **(row[3] if len(row) > 3 else {}))  # type: ignore[arg-type]
    for row in (
        ("no such file", _QUANTIZE),
        ("a text file", _QUANTIZE, lambda world: (world.folder / "m.gguf").write_text("Not found\n")),
        ("a file of no bytes", _QUANTIZE, lambda world: (world.folder / "m.gguf").touch()),
        ("a file cut off in the weights", _QUANTIZE, lambda world: cut(world.take("m.gguf"), -5000)),
        ("a device", "quantize /dev/null -t q8_0 -o x.gguf"),
        ("a pipe", _QUANTIZE, lambda world: os.mkfifo(world.folder / "m.gguf")),
        ("a tensor twice in one file", _QUANTIZE, _written("m.gguf", twice=True)),
        ("a file that is quantized already", "quantize q8.gguf -t q4_0 -o x.gguf", lambda world: world.take("q8.gguf")),
        ("a scale that is NaN, quantized again", "quantize m.gguf -t q4_0 -o x.gguf --allow-requantize", _nan_scale),
        ("an unknown type", "quantize m.gguf -t q4_kk -o x.gguf", lambda world: world.take("m.gguf")),
        ("a type that needs an importance matrix", "quantize wide.gguf -t iq2_xs -o x.gguf", lambda world: world.take("wide.gguf")),
        ("the target is there", _QUANTIZE, lambda world: (world.take("m.gguf"), (world.folder / "x.gguf").write_text("old")), {"leaves": ("x.gguf",)}),
        ("the target is the source", "quantize m.gguf -t q8_0 -o m.gguf --force", lambda world: world.take("m.gguf"), {"leaves": ("m.gguf",)}),
        ("the target is a folder", "quantize m.gguf -t q8_0 -o out", lambda world: (world.take("m.gguf"), (world.folder / "out").mkdir())),
        ("a GGUF type of an ONNX folder", "quantize onnx -t q4_0 -o x", lambda world: world.take("onnx")),
        ("a folder without a model", "quantize ckpt -t int4 -o x", lambda world: world.checkpoint()),
        ("an ONNX folder with weights cut off", "quantize onnx -t int4 -o x", lambda world: cut(world.take("onnx") / "model.onnx.data", -5000)),
    )
)  # fmt: skip

ONNX_ROWS = (
    _onnx("no graph", lambda world: (world.take("onnx") / "model.onnx").unlink()),
    _onnx("the graph cut off", lambda world: cut(world.take("onnx") / "model.onnx", 3000)),
    _onnx("no weights", lambda world: (world.take("onnx") / "model.onnx.data").unlink()),
    _onnx("the weights cut off", lambda world: cut(world.take("onnx") / "model.onnx.data", -5000)),
    _onnx("weights of another checkpoint under the same names",
          lambda world: (world.checkpoint(), overwrite(world.take("onnx") / "model.onnx.data", 8192, bytes(range(256)) * 32)),
          "verify onnx --against ckpt --threads 1"),
    _onnx("no tokenizer.json", lambda world: (world.take("onnx") / "tokenizer.json").unlink()),
    _onnx("tokenizer.json cut off", lambda world: cut(world.take("onnx") / "tokenizer.json", 1000)),
    _onnx("config.json cut off", lambda world: cut(world.take("onnx") / "config.json", 60)),
    _onnx("config.json without its sizes", lambda world: edit_json(world.take("onnx") / "config.json", hidden_size=None)),
    _onnx("an unknown provider", lambda world: world.take("onnx"), f"{_RUN_ONNX} --provider cpuu"),
    _onnx("an adapter", lambda world: world.take("onnx"), f"{_RUN_ONNX} --adapter a.gguf"),
    _onnx("a provider for a GGUF file", lambda world: world.take("m.gguf"), f"{_RUN} --provider openvino"),
    _onnx("the target is there", lambda world: (world.checkpoint(), world.take("onnx")), "convert ckpt --to onnx -o onnx", leaves=("onnx/model.onnx",)),
    _onnx("the target holds other files", lambda world: world.checkpoint(), "convert ckpt --to onnx -o ckpt --force", leaves=("ckpt/model.safetensors",)),
    _onnx("the target is a file", lambda world: (world.checkpoint(), (world.folder / "out").write_text("mine")), "convert ckpt --to onnx -o out --force", leaves=("out",)),
)  # fmt: skip
