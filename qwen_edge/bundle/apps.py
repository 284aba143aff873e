"""The same settings in the words of other programs: llama.rn in an app, llama.cpp's own programs."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

from qwen_edge.bundle.record import BundledChat, BundledSettings
from qwen_edge.config import SamplingConfig

RN_NAME = "llama-rn.json"

# Source: ContextParams in llama.rn's src/index.ts; it has no bf16.
_RN_CACHE_TYPES = ("f16", "f32", "q8_0", "q4_0")
# Conversations at once: llama.rn and llama-server would make room for several.
_N_PARALLEL = 1

Sampling = dict[str, SamplingConfig | None]


def rn_params(file: str, load: BundledSettings, chat: BundledChat, sampling: Sampling) -> dict[str, Any]:
    """Return the parameters of llama.rn's initLlama ("context") and context.completion ("completion", by mode).

    Source: NativeContextParams and NativeCompletionParams in llama.rn's src/types.ts.

    Args:
        file: Name of the model's file; an app puts its own path before it.
        load: Settings.
        chat: How it is talked to.
        sampling: By mode; None for a mode that the model does not have.
    """
    context: dict[str, Any] = {
        "model": file,
        "n_ctx": load.n_ctx,
        "n_batch": load.n_batch,
        "n_ubatch": load.n_batch,
        "n_parallel": _N_PARALLEL,
        "flash_attn_type": load.flash_attention,
        "use_mmap": load.load_mode == "mmap",
        "use_mlock": False,
    }
    if load.n_threads is not None:
        context["n_threads"] = load.n_threads
    if load.kv_type in _RN_CACHE_TYPES:
        context |= {"cache_type_k": load.kv_type, "cache_type_v": load.kv_type}
    completion = {
        mode: _rn_completion(chat, config, mode) for mode, config in sampling.items() if config is not None
    }
    return {"context": context, "completion": completion}


def _rn_completion(chat: BundledChat, sampling: SamplingConfig, mode: str) -> dict[str, Any]:
    params: dict[str, Any] = {"jinja": chat.template is not None, "stop": list(chat.stop)}
    if chat.thinking == "switched":
        params["enable_thinking"] = mode == "thinking"
    return params | {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "penalty_repeat": sampling.repetition_penalty,
        "penalty_present": sampling.presence_penalty,
        "penalty_last_n": sampling.penalty_last_n,
    }


def rn_json(params: dict[str, Any]) -> str:
    """Return the text of llama-rn.json."""
    return json.dumps(params, indent=2, ensure_ascii=False) + "\n"


def llama_cpp_commands(
    file: str, load: BundledSettings, chat: BundledChat, sampling: Sampling
) -> dict[str, str]:
    """Return command lines of llama-server and llama-cli with the same settings, sampling of the usual mode.

    Source: common/arg.cpp of llama.cpp 0c1e570; older builds say --no-mmap for `--load-mode none`.
    """
    words = [
        "-m",
        file,
        "-c",
        load.n_ctx,
        "-b",
        load.n_batch,
        "-ub",
        load.n_batch,
        "-fa",
        load.flash_attention,
    ]
    words += ["-ctk", load.kv_type, "-ctv", load.kv_type]
    words += ["--load-mode", "mmap" if load.load_mode == "mmap" else "none", "--jinja"]
    if load.n_threads is not None:
        words += ["-t", load.n_threads]
    config = sampling["thinking"] or sampling["direct"]
    if config is not None:
        words += ["--temp", config.temperature, "--top-k", config.top_k, "--top-p", config.top_p]
        words += ["--min-p", config.min_p, "--repeat-penalty", config.repetition_penalty]
        words += ["--presence-penalty", config.presence_penalty, "--repeat-last-n", config.penalty_last_n]
    server = ["-np", _N_PARALLEL]
    return {
        "llama-server": shlex.join(map(str, ["llama-server", *words, *server])),
        "llama-cli": shlex.join(map(str, ["llama-cli", *words])),
    }


def sampling_json(sampling: Sampling) -> dict[str, Any]:
    """Return the sampling of each mode as JSON types; the seed is left to whoever samples."""
    return {
        mode: None
        if config is None
        else {name: value for name, value in asdict(config).items() if name != "seed"}
        for mode, config in sampling.items()
    }
