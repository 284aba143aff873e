"""The planned memory against what llama.cpp says that it will allocate."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.memory import estimate_memory
from qwen_edge.memory_kernels import build_kernels
from qwen_edge.native import library
from qwen_edge.native.handles import context_params
from qwen_edge.trial_model import write_trial_outline

_MIB = 1 << 20


class _Log:
    """The library's log while a block runs, all of it: its own holds the last lines only."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.text = ""
        self._callback = api.llama_log_callback(self._add)
        api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _add(self, level: int, text: bytes, _: int) -> None:
        self.text += text.decode() if b"buffer size" in text else ""

    def sizes(self, what: str) -> dict[str, float]:
        """Return bytes by buffer, as the log rounds them."""
        found = re.findall(rf"(\S+)\s+{what} buffer size =\s+([\d.]+) MiB", self.text)
        return {name: float(mib) * _MIB for name, mib in found}

    def close(self) -> None:
        self._api.llama_log_set(library._kept_callback, ctypes.c_void_p(0))


@pytest.fixture
def log() -> Iterator[_Log]:
    found = _Log(library.api())
    yield found
    found.close()


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"])
def test_scores_and_activations_are_what_the_library_reserves(name: str, tmp_path: Path, log: _Log) -> None:
    """Full-size models of which only the header is there: `no_alloc` reserves without allocating."""
    api, path = library.api(), tmp_path / "m.gguf"
    model = MODELS[name]
    assert model.shape is not None
    architecture = "qwen2" if model.shape.has_qkv_bias else "qwen3"
    write_trial_outline(path, model.shape, "Q4_0", architecture=architecture)
    params = api.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, 0, 0
    handle = api.llama_model_load_from_file(os.fsencode(path), params)
    assert handle
    try:
        for n_ctx in (2048, 3000, 8192):
            config = LoadConfig(n_ctx=n_ctx)
            settings = context_params(api, config, 1)
            settings.n_ctx, settings.n_seq_max = n_ctx, 1
            settings.n_batch = settings.n_ubatch = config.n_batch
            log.text = ""
            context = api.llama_init_from_model(handle, settings)
            assert context
            api.llama_free(context)
            (reserved,) = log.sizes("compute").values()
            planned = estimate_memory(model.shape, "Q4_0", config).compute_bytes
            # The kernels' own buffer is no part of the library's: the scores in F16.
            padded = -(-n_ctx // 256) * 256
            scores = 2 * config.n_batch * model.shape.n_heads * padded
            logits = 4 * model.shape.vocab_size
            assert planned - scores - logits == pytest.approx(reserved, abs=0.01 * _MIB)
    finally:
        api.llama_model_free(handle)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16"])
def test_weights_are_held_as_planned(type_name: str, tmp_path: Path, log: _Log) -> None:
    """A loaded model of a fiftieth the size: buffers of the kernels, and those as in the file."""
    from dataclasses import replace

    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    shape = replace(shape, n_layers=9, hidden_size=256, ffn_size=512, vocab_size=4096)
    path, api = tmp_path / "m.gguf", library.api()
    write_trial_outline(path, shape, type_name)
    params = api.llama_model_default_params()
    params.load_mode, params.n_gpu_layers = 0, 0
    handle = api.llama_model_load_from_file(os.fsencode(path), params)
    assert handle
    api.llama_model_free(handle)
    held = sum(log.sizes("model").values())
    need = estimate_memory(shape, type_name, LoadConfig(n_ctx=256), kernels=build_kernels())
    assert need.weights_bytes + need.head_copy_bytes == pytest.approx(held, abs=0.05 * _MIB)
