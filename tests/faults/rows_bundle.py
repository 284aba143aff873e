"""Faults of bundles, met by `bundle`, `verify-bundle` and `run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_edge.bundle.record import _signed
from tests.faults.running import SMALL_DISK, Fault, nothing
from tests.faults.world import World, cut, overwrite

_BUNDLE = "bundle m.gguf -o b --n-ctx 256"
_RUN = "run b Hi --max-tokens 4 --threads 1"
_KB = 1 << 10
_LOOKS_FREE = {"FAULT_DISK_LOOKS_FREE": "1"}


def _row(name: str, command: str, make: Callable[[World], object] = nothing, **more: Any) -> Fault:
    return Fault(group="Bundles", name=name, make=make, command=command, **more)


def _take(name: str) -> Callable[[World], object]:
    return lambda world: world.take(name)


def _record(change: Callable[[dict[str, Any]], object]) -> Callable[[World], None]:
    """Return what changes bundle.json as somebody would who knows how its digest is made."""

    def make(world: World) -> None:
        path = world.take("b") / "bundle.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(_signed(data), encoding="utf-8")

    return make


def _text(world: World, old: str, new: str) -> None:
    path = world.take("b") / "bundle.json"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def _linked(world: World) -> None:
    model: Path = world.take("b") / "m.gguf"
    model.rename(world.folder / "elsewhere.gguf")
    model.symlink_to(world.folder / "elsewhere.gguf")


ROWS = (
    _row("no such file, to bundle", _BUNDLE),
    _row("a model that is not here yet, to bundle", "bundle qwen3-0.6b -o b"),
    _row("a checkpoint, to bundle", "bundle ckpt -o b", lambda world: world.checkpoint()),
    _row("a file cut off in the weights, to bundle", _BUNDLE, lambda world: cut(world.take("m.gguf"), -5000)),
    _row("one of several files, to bundle", "bundle m-00001-of-00002.gguf -o b", lambda world: world.take("m.gguf", "m-00001-of-00002.gguf")),
    _row("a context longer than the model handles, to bundle", "bundle m.gguf -o b --n-ctx 600", _take("m.gguf")),
    _row("no folder to bundle into", "bundle m.gguf", _take("m.gguf")),
    _row("a bundle that is there", _BUNDLE, lambda world: (world.take("m.gguf"), world.take("b")), leaves=("b/bundle.json",)),
    _row("a folder with other files, to bundle into", "bundle m.gguf -o ckpt --force", lambda world: (world.take("m.gguf"), world.checkpoint()), leaves=("ckpt/config.json",)),
    _row("a file, to bundle into", "bundle m.gguf -o out --force", lambda world: (world.take("m.gguf"), (world.folder / "out").write_text("mine")), leaves=("out",)),
    _row("a model that is not what its manifest says", _BUNDLE,
         lambda world: (world.take("m.gguf"), world.take("m.gguf.manifest.json"), overwrite(world.folder / "m.gguf", 20_000, b"\x11\x22\x33\x44"))),
    _row("a disk too small for a bundle", f"bundle m.gguf -o {SMALL_DISK}/b --n-ctx 256", _take("m.gguf"), small_disk_bytes=64 * _KB),
    _row("a disk that is full while a bundle is written", f"bundle m.gguf -o {SMALL_DISK}/b --n-ctx 256", _take("m.gguf"), small_disk_bytes=64 * _KB, env=_LOOKS_FREE),
    _row("no such bundle", "verify-bundle b"),
    _row("a folder that is no bundle", "verify-bundle ckpt", lambda world: world.checkpoint()),
    _row("bundle.json cut off", _RUN, lambda world: cut(world.take("b") / "bundle.json", 500)),
    _row("bundle.json changed by hand", _RUN, lambda world: _text(world, '"n_ctx": 256', '"n_ctx": 512')),
    _row("bundle.json of another version", _RUN, _record(lambda data: data.update(schema="qwen-edge/bundle/9"))),
    _row("bundle.json with a value of another type", _RUN, _record(lambda data: data["load"].update(n_ctx="many"))),
    _row("bundle.json that leads out of its folder", _RUN, _record(lambda data: data["model"].update(file="../m.gguf"))),
    _row("a bundle without its model", _RUN, lambda world: (world.take("b") / "m.gguf").unlink()),
    _row("a bundle whose model is a link", _RUN, _linked),
    _row("a bundle whose model is cut off", _RUN, lambda world: cut(world.take("b") / "m.gguf", -5000)),
)  # fmt: skip
