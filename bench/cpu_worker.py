"""One process that evaluates files for bench.across_cpus; it may die without taking the record with it.

Run as `python -m qwen_edge.bench.cpu_worker ORDER`; a line on stdout tells of each run that was written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qwen_edge
from qwen_edge.bench.cpu_record import Greedy, Rows, Run, top_of
from qwen_edge.digests import file_digest
from qwen_edge.engines.base import Engine
from qwen_edge.engines.onnx_folder import is_onnx, model_files
from qwen_edge.errors import ConfigError, QwenEdgeError
from qwen_edge.gguf_header import read_header
from qwen_edge.manifest import read_manifest
from qwen_edge.quant_types import TENSOR_TYPES

_N_CTX = 256
# Two calls of 8 positions and a rest: of a file without tokenizer.
_N_FIXED = 18
# The finest first.
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def rounding_of(path: Path) -> str:
    """Return how the coarsest of a file's matrices has its inputs rounded: files with the same are equally noisy.

    Source: vec_dot_type in type_traits_cpu of ggml/src/ggml-cpu/ggml-cpu.c of llama.cpp; accuracy_level of MatMulNBits in
    ONNX Runtime.
    """
    if is_onnx(path):
        manifest = read_manifest(path)
        precision = manifest.settings.get("precision", {}) if manifest else {}
        is_float = precision.get("weights") in ("f32", "f16")
        is_exact = precision.get("weights") == "int4" and precision.get("accuracy_level") == 0
        return "ONNX, float32" if is_float or is_exact else "ONNX, 8 bits"
    types = [TENSOR_TYPES[tensor.type_name] for tensor in read_header(path).tensors if len(tensor.shape) > 1]
    coarsest = max(
        types,
        key=lambda kind: (kind.block_weights, list(_FLOATS).index(kind.name) if kind.name in _FLOATS else 0),
    )
    if coarsest.block_weights == 1:
        return _FLOATS[coarsest.name]
    return f"8 bits in blocks of {256 if coarsest.block_weights == 256 else 32}"


def kinds_of_kernels(path: Path) -> tuple[str, ...]:
    """Return the kinds of kernels that a file can be evaluated with."""
    return ("fast",) if is_onnx(path) else ("fast", "plain")


def evaluate(path: Path, kernels: str, prompts: Sequence[str], n_steps: int, settings: dict[str, Any]) -> Run:
    """Evaluate prompts in all ways.

    Args:
        path: A GGUF file or an exported folder.
        kernels: One of kinds_of_kernels(path).
        prompts: Text; control tokens are read as such. A file without tokenizer gets one prompt of fixed ids.
        n_steps: Tokens that each prompt is continued by.
        settings: Of load(), without n_ctx.

    Raises:
        ConfigError: A prompt has more tokens than the engine keeps logits of in one call.
        QwenEdgeError: The file does not load.
    """
    if not is_onnx(path):
        settings = {**settings, "safe_kernels": kernels == "plain"}
    with qwen_edge.load(path, n_ctx=_N_CTX, prefix_cache=False, tuned=False, **settings) as model:
        engine = model.engine
        tokens = _tokens(engine, path, prompts)
        prefill, decode, greedy = zip(*(_ways(engine, each, n_steps) for each in tokens), strict=True)
        top = [top_of(steps) for steps in greedy]
        return Run(
            file=path.name,
            sha256=file_digest(model_files(path)[-1]),
            engine=engine.info.engine,
            kernels=kernels,
            rounding=rounding_of(path),
            settings=dict(engine.info.settings),
            prompts=tuple(tuple(each) for each in tokens),
            prefill=Rows.from_logits(np.concatenate(prefill)),
            decode=Rows.from_logits(np.concatenate(decode)),
            greedy=Greedy(
                tokens=np.stack([tokens for tokens, _ in top]), logits=np.stack([logits for _, logits in top])
            ),
        )


def _tokens(engine: Engine, path: Path, prompts: Sequence[str]) -> list[list[int]]:
    if not is_onnx(path) and read_header(path).metadata.get("tokenizer.ggml.model") == "no_vocab":
        return [[(7 * i + 3) % engine.info.n_vocab for i in range(_N_FIXED)]]
    return [engine.tokenize(text) for text in prompts]


def _ways(
    engine: Engine, tokens: Sequence[int], n_steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits of a prompt token by token, in one call, and those of each step behind it."""
    context = engine.new_context()
    most = min(context.most_kept_logits, _N_CTX - n_steps)
    if len(tokens) > most:
        raise ConfigError(
            f"a prompt has {len(tokens)} tokens; the logits of {most} are kept here",
            hint="Take shorter prompts.",
        )
    decode = []
    for token in tokens:
        context.append([token])
        decode.append(context.logits())
    context.rewind(0)
    context.append_all(tokens)
    prefill = []
    for index in range(len(tokens)):
        context.select(index)
        prefill.append(context.logits())
    steps = [prefill[-1]]
    while len(steps) < n_steps:
        context.append([int(steps[-1].argmax())])
        steps.append(context.logits())
    context.close()
    return np.stack(prefill), np.stack(decode), np.stack(steps)


def _main(order: dict[str, Any]) -> None:
    for index, (file, kernels) in order["runs"]:
        path = Path(file)
        _say(begun=index)
        try:
            run = evaluate(path, kernels, order["prompts"], order["n_steps"], order["settings"])
        except QwenEdgeError as error:
            _say(done=index, error=str(error))
            continue
        run.save(Path(order["folder"]) / f"{index}.npz")
        if run.engine == "llama.cpp":
            from qwen_edge.native import library

            _say(native={"system_info": library.system_info(), "cpu_module": library.cpu_module()})
        _say(done=index)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
