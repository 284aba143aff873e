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
from qwen_edge.errors import QwenEdgeError


def kinds_of_kernels(path: Path) -> tuple[str, ...]:
    """Return the kinds of kernels that a file can be evaluated with."""
    return ("fast",) if is_onnx(path) else ("fast", "plain")


def evaluate(path: Path, kernels: str, prompts: Sequence[str], n_steps: int, settings: dict[str, Any]) -> Run:
    """Evaluate prompts in all ways.

    Args:
        path: A GGUF file or an exported folder.
        kernels: One of kinds_of_kernels(path).
        prompts: Text; control tokens are read as such.
        n_steps: Tokens that each prompt is continued by.
        settings: Of load(), without n_ctx.

    Raises:
        QwenEdgeError: The file does not load.
    """
    if not is_onnx(path):
        settings = {**settings, "safe_kernels": kernels == "plain"}
    with qwen_edge.load(path, n_ctx=512, prefix_cache=False, tuned=False, **settings) as model:
        engine = model.engine
        tokens = [engine.tokenize(text) for text in prompts]
        prefill, decode, greedy = zip(*(_ways(engine, each, n_steps) for each in tokens), strict=True)
        top = [top_of(np.stack(steps)) for steps in greedy]
        return Run(
            file=path.name,
            sha256=file_digest(model_files(path)[-1]),
            engine=engine.info.engine,
            kernels=kernels,
            settings=dict(engine.info.settings),
            prompts=tuple(tuple(each) for each in tokens),
            prefill=Rows.from_logits(np.concatenate(prefill)),
            decode=Rows.from_logits(np.concatenate(decode)),
            greedy=Greedy(
                tokens=np.stack([tokens for tokens, _ in top]), logits=np.stack([logits for _, logits in top])
            ),
        )


def _ways(
    engine: Engine, tokens: Sequence[int], n_steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[NDArray[np.float32]]]:
    """Return the logits of a prompt in one call, token by token, and those of each step behind it."""
    prefill = engine.score(tokens)
    context = engine.new_context()
    decode = []
    for token in tokens:
        context.append([token])
        decode.append(context.logits())
    context.rewind(0)
    context.append(tokens)
    steps = [context.logits()]
    while len(steps) < n_steps:
        context.append([int(steps[-1].argmax())])
        steps.append(context.logits())
    context.close()
    return prefill, np.stack(decode), steps


def _main(order: dict[str, Any]) -> None:
    for index, (file, kernels) in order["runs"]:
        path = Path(file)
        try:
            run = evaluate(path, kernels, order["prompts"], order["n_steps"], order["settings"])
        except QwenEdgeError as error:
            _say(done=index, error=str(error))
            continue
        run.save(Path(order["folder"]) / f"{index}.npz")
        if run.engine == "llama.cpp":
            from qwen_edge.native import library

            _say(system_info=library.system_info())
        _say(done=index)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
