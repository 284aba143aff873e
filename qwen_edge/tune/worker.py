"""The child that measures: a model is loaded once, and timed under the settings that it is asked for.

Run as `python -m qwen_edge.tune.worker FILE FOLDER`. Each line of stdin is a `Job` in JSON, each line of stdout its answer:
{"token_s": ...} or {"error": ...}. Everything goes through the engine's seam, as in a session; nothing is sampled.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_edge.config import MAX_SESSIONS, LoadConfig
from qwen_edge.engines.base import Context, Engine
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import QwenEdgeError
from qwen_edge.files import atomic_path
from qwen_edge.tuned import Settings

# A turn of measuring decode: so long, but so many steps at least and at most.
_DECODE_S = 0.25
_FEWEST_STEPS, _MOST_STEPS = 4, 32
# Tokens before the timed ones: buffers are touched, clocks are up.
_WARM_TOKENS = 8
_KEPT_CONTEXTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sample to take.

    Attributes:
        phase: Reading a prompt, or writing an answer.
        settings: With these.
        n_tokens: Of the prompt.
        depth: Tokens that each session holds before.
        n_sessions: Sessions that do it at once.
        n_ctx: Of each.
    """

    phase: Literal["prefill", "decode"]
    settings: Settings
    n_tokens: int
    depth: int
    n_sessions: int
    n_ctx: int

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Job:
        """Return what to_json() made a line of."""
        data: dict[str, Any] = json.loads(line)
        return cls(**{**data, "settings": Settings(**data["settings"])})

    def load_config(self) -> LoadConfig:
        """Return the settings in full form."""
        return self.settings.config(
            LoadConfig(n_ctx=self.n_ctx, n_sessions=self.n_sessions, tuned=False, prefix_cache=False)
        )


class Worker:
    """An engine, and the contexts that were used last."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Prepare; the first job decides how the model is loaded.

        Args:
            path: A GGUF file, or an exported folder.
            folder: Where filled KV caches are left for other workers.
        """
        self._path, self._folder = path, folder
        self._engine: Engine | None = None
        self._n_threads = 0
        self._contexts: dict[Job, list[Context]] = {}
        self._threads = ThreadPoolExecutor(max_workers=MAX_SESSIONS)

    def run(self, job: Job) -> float:
        """Return the seconds a token (decode: a step of all sessions).

        Raises:
            QwenEdgeError: The settings do not work here.
        """
        contexts = self._contexts_for(job)
        self._rewind(contexts, job.depth)
        self._step(contexts, self._tokens(_WARM_TOKENS, job.depth))
        if job.phase == "prefill":
            self._rewind(contexts, job.depth)
            prompt = self._tokens(job.n_tokens, job.depth)
            started = time.perf_counter()
            self._step(contexts, prompt)
            return (time.perf_counter() - started) / (len(prompt) * len(contexts))
        steps: list[float] = []
        for token in self._tokens(_MOST_STEPS, job.depth):
            started = time.perf_counter()
            self._step(contexts, [token])
            steps.append(time.perf_counter() - started)
            if len(steps) >= _FEWEST_STEPS and sum(steps) > _DECODE_S:
                break
        return statistics.median(steps)

    def _contexts_for(self, job: Job) -> list[Context]:
        """Return contexts with these settings that hold `depth` tokens; the model is loaded if need be."""
        key = _context_key(job)
        if key in self._contexts:
            self._contexts[key] = self._contexts.pop(key)  # the last used is the last
            return self._contexts[key]
        if job.n_sessions > 1 or len(self._contexts) >= _KEPT_CONTEXTS:
            oldest = list(self._contexts)[: None if job.n_sessions > 1 else 1]
            for old in oldest:
                _close(self._contexts.pop(old))
        engine = self._engine_for(job)
        contexts = [engine.new_context() for _ in range(job.n_sessions)]
        self._contexts[key] = contexts
        self._fill(contexts, job)
        return contexts

    def _engine_for(self, job: Job) -> Engine:
        config = job.load_config()
        if is_onnx(self._path):
            from qwen_edge.engines.onnx import OnnxEngine

            if self._n_threads != job.settings.n_threads:
                self._close_engine()
                self._engine = OnnxEngine(self._path, config)
            assert isinstance(self._engine, OnnxEngine), "Bug: a folder does not change its kind"
            self._engine.use_for_contexts(config)
        else:
            from qwen_edge.engines.llama import LlamaEngine

            if self._engine is None:
                self._engine = LlamaEngine(self._path, config)
            assert isinstance(self._engine, LlamaEngine), "Bug: a file does not change its kind"
            self._engine.use_for_contexts(config)
        self._n_threads = job.settings.n_threads
        return self._engine

    def _close_engine(self) -> None:
        for contexts in self._contexts.values():
            _close(contexts)
        self._contexts.clear()
        if self._engine is not None:
            self._engine.close()

    def _fill(self, contexts: Sequence[Context], job: Job) -> None:
        """Bring contexts to the depth, from what another context left where that is there."""
        if job.depth == 0:
            return
        form = f"{job.settings.flash_attention}-{job.settings.kv_type}-{job.depth}"
        kept = self._folder / f"{form}.kv"
        if not kept.exists():
            _append(contexts[0], self._tokens(job.depth, 0))
            with atomic_path(kept) as part:
                contexts[0].save_state().tofile(part)
        for context in contexts:
            if context.n_past != job.depth:
                context.load_state(np.fromfile(kept, np.uint8), job.depth)

    def _tokens(self, count: int, salt: int) -> list[int]:
        assert self._engine is not None, "Bug: contexts come from an engine"
        return [(7 * i + salt + 3) % self._engine.info.n_vocab for i in range(count)]

    def _rewind(self, contexts: Iterable[Context], depth: int) -> None:
        for context in contexts:
            context.rewind(depth)

    def _step(self, contexts: Sequence[Context], tokens: Sequence[int]) -> None:
        if len(contexts) == 1:
            _append(contexts[0], tokens)
            return
        for done in [self._threads.submit(_append, context, tokens) for context in contexts]:
            done.result()


def _context_key(job: Job) -> Job:
    """Return what contexts are kept under: one serves both phases where settings are equal."""
    return replace(job, phase="prefill", n_tokens=0)


def _append(context: Context, tokens: Sequence[int]) -> None:
    for start in range(0, len(tokens), context.n_batch):
        part = tokens[start : start + context.n_batch]
        context.append(part, wants_logits=start + len(part) == len(tokens))


def _close(contexts: Iterable[Context]) -> None:
    for context in contexts:
        context.close()


def _serve(path: str, folder: str) -> None:
    worker = Worker(Path(path), Path(folder))
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"token_s": worker.run(Job.from_json(line))}
        except (QwenEdgeError, MemoryError) as error:
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2])
