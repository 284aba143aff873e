"""Settings: frozen, keyword-only, checked when they are made."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from qwen_edge.errors import ConfigError

LoadMode = Literal["read", "mmap"]
KVType = Literal["f16", "bf16", "f32", "q8_0", "q4_0"]
KV_TYPES: tuple[KVType, ...] = get_args(KVType)
# They need flash attention. Source: llama_init_from_model in src/llama-context.cpp.
QUANTIZED_KV_TYPES = ("q8_0", "q4_0")
Switch = Literal["on", "off"]
Affinity = Literal["none", "cores"]
ThinkingMode = Literal["on", "off", "auto"]
SpeculationMode = Literal["off", "prompt_lookup", "draft"]
SPECULATION_MODES: tuple[SpeculationMode, ...] = get_args(SpeculationMode)

DEFAULT_N_CTX = 4096
# What n_ctx="auto" becomes: load() puts the largest context that fits in its place.
AUTO_N_CTX = -1
# Source: GGML_MAX_N_THREADS in ggml/include/ggml.h
MAX_THREADS = 512
# Source: LLAMA_MAX_SEQ in llama.cpp, src/llama-cparams.h
MAX_SESSIONS = 256

_MAX_ADAPTER_SCALE = 1000.0


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # A caller without a type checker may give anything; NaN is between nothing.
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be between {low:g} and {high:g} (not {value!r})")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)} (not {value!r})")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """An adapter (LoRA), and how strongly it acts.

    Attributes:
        path: For a loaded model a GGUF file, for a conversion the folder in which PEFT saved it.
        scale: What the adapter adds is multiplied by this: 0 is the model alone, 1 the adapter as it was trained.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        is_number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not is_number or not math.isfinite(self.scale) or abs(self.scale) > _MAX_ADAPTER_SCALE:
            raise ConfigError(
                f"the scale of adapter {self.path} must be a number between -{_MAX_ADAPTER_SCALE:g} and "
                f"{_MAX_ADAPTER_SCALE:g} (not {self.scale!r})"
            )
        object.__setattr__(self, "scale", float(self.scale))


AdapterLike = AdapterConfig | str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


def adapter_configs(adapters: Iterable[AdapterLike]) -> tuple[AdapterConfig, ...]:
    """Return adapters in their full form.

    Args:
        adapters: Each an AdapterConfig, a path, or a (path, scale).

    Raises:
        ConfigError: One is something else, or a scale is out of range.
    """
    example = 'Form: adapters=["a.gguf", ("b.gguf", 0.5)].'
    if isinstance(adapters, str | os.PathLike) or not isinstance(adapters, Iterable):
        raise ConfigError(f"adapters must be a list (not {adapters!r})", hint=example)
    configs = []
    for adapter in adapters:
        if isinstance(adapter, AdapterConfig):
            configs.append(adapter)
            continue
        pair = adapter if isinstance(adapter, tuple | list) else (adapter, 1.0)
        if len(pair) != 2 or not isinstance(pair[0], str | os.PathLike):
            raise ConfigError(f"an adapter must be a path or (path, scale), not {adapter!r}", hint=example)
        configs.append(AdapterConfig(path=Path(pair[0]), scale=pair[1]))
    return tuple(configs)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadConfig:
    """How a model is loaded and how large its contexts are.

    Attributes:
        n_ctx: Tokens a session can hold, prompt and replies together. The KV cache is allocated for all of them
            (112 KiB a token for Qwen3-0.6B in F16), so the model's own limit is not the default. "auto" (AUTO_N_CTX) takes
            the largest that fits in the memory that is free, with a tenth of it to spare, and that the model was
            trained for.
        n_threads: CPU threads; None takes the physical cores this process may use, on ARM without the little ones.
        n_prefill_threads: CPU threads while a prompt is read, for llama.cpp; None takes n_threads.
        affinity: "cores" binds each thread to a physical core of its own, the fastest first, "none" leaves that to the
            system. Linux, Android and Windows, for llama.cpp.
        n_batch: Tokens evaluated in one native call while prefilling. A call cannot be interrupted: smaller
            answers Ctrl-C sooner, larger uses the matrix kernels better.
        flash_attention: "off" decodes faster on CPU as the context grows, "on" prefills faster and needs less memory
            for long prompts.
        kv_type: Type of the KV cache. A quantized one needs flash attention.
        load_mode: "read" copies the weights into memory once. "mmap" shares pages between processes and starts faster,
            but holds weights twice that the CPU kernels repack.
        n_sessions: How many sessions of one model evaluate together. With more than 1 there is room for this many at a
            time, each with n_ctx tokens, and decode steps that several threads ask for at once are one native call.
        safe_kernels: True keeps to the plain kernels (no repacking, no AMX); None decides by probing the native
            library once per machine in a child process.
        adapters: GGUF adapters that act on the model, each a path, a (path, scale) or an AdapterConfig; several add up.
        prefix_cache: Keep the evaluated system prompt and tools in a file, so that the next process need not evaluate
            them again. The file holds their tokens too. See qwen_edge.prefix_cache.
        provider: Where an ONNX model runs: "cpu", "openvino", or the name of another execution provider of the installed
            ONNX Runtime. kv_type, flash_attention, load_mode, safe_kernels and adapters are llama.cpp's: an ONNX model
            has its KV cache in F32, and refuses the others.
        speculation: "prompt_lookup" evaluates several tokens of a reply at once where the text repeats itself, and where
            that is measured to be faster; "draft" has draft_model guess them. Each token is still the model's own choice,
            but calls of several tokens round differently: where two are nearly as likely it may be the other one. See
            qwen_edge.speculation. With n_sessions above 1 it stays off.
        draft_model: A small model with the same vocabulary, a file or a name; it is loaded beside the model and makes
            speculation "draft".
        chat_template: None takes the one in the model file, "chatml" the plain form that Qwen's models share (no tools, no
            switch for thinking); anything else is Jinja source.
        tuned: Take what `qwen-edge tune` found for this file, machine and build, for the settings that are not asked for:
            in load(path, name=value) the names that are given, in a LoadConfig the values that are not the default.
    """

    n_ctx: int = DEFAULT_N_CTX
    n_threads: int | None = None
    n_prefill_threads: int | None = None
    affinity: Affinity = "none"
    n_batch: int = 512
    flash_attention: Switch = "off"
    kv_type: KVType = "f16"
    load_mode: LoadMode = "read"
    n_sessions: int = 1
    safe_kernels: bool | None = None
    adapters: tuple[AdapterConfig, ...] = ()
    prefix_cache: bool = True
    provider: str = "cpu"
    speculation: SpeculationMode = "off"
    draft_model: Path | None = None
    chat_template: str | None = None
    tuned: bool = True

    def __post_init__(self) -> None:
        self._check_speculation()
        object.__setattr__(self, "adapters", adapter_configs(self.adapters))
        asked: object = self.n_ctx
        if asked == "auto":
            object.__setattr__(self, "n_ctx", AUTO_N_CTX)
        elif asked != AUTO_N_CTX:
            _check_range("n_ctx", self.n_ctx, 16, 1 << 24)
        _check_range("n_batch", self.n_batch, 1, 8192)
        _check_range("n_sessions", self.n_sessions, 1, MAX_SESSIONS)
        for name, count in (("n_threads", self.n_threads), ("n_prefill_threads", self.n_prefill_threads)):
            if count is not None:
                _check_range(name, count, 1, MAX_THREADS)
        _check_choice("affinity", self.affinity, ("none", "cores"))
        _check_choice("flash_attention", self.flash_attention, ("on", "off"))
        _check_choice("load_mode", self.load_mode, ("read", "mmap"))
        _check_choice("kv_type", self.kv_type, KV_TYPES)
        if self.kv_type in QUANTIZED_KV_TYPES and self.flash_attention == "off":
            raise ConfigError(
                f"kv_type {self.kv_type!r} needs flash attention", hint='Add flash_attention="on".'
            )

    def _check_speculation(self) -> None:
        _check_choice("speculation", self.speculation, SPECULATION_MODES)
        if self.draft_model is not None:
            object.__setattr__(self, "draft_model", Path(self.draft_model))
            if self.speculation == "prompt_lookup":
                raise ConfigError(
                    "speculation is 'prompt_lookup', and a draft_model is given too",
                    hint="Take one of the two.",
                )
            object.__setattr__(self, "speculation", "draft")
        elif self.speculation == "draft":
            raise ConfigError(
                "speculation 'draft' needs a draft model",
                hint='Add draft_model="qwen3-0.6b", or the path of a file.',
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen.

    Applied in this order: penalties, top_k, top_p, min_p, temperature, draw.

    Attributes:
        temperature: 0 takes the most likely token and ignores the rest.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the most likely tokens that together reach this probability.
        min_p: Drop tokens below this share of the most likely one's probability.
        presence_penalty: Subtracted from the logit of each token already generated in this reply.
        repetition_penalty: Divides positive logits of such tokens, multiplies negative ones.
        penalty_last_n: How many of the last generated tokens the penalties look at; 64 is llama.cpp's default too. With top_k
            20, up to 108 costs half of what more does (llama.cpp's partial sort ends at 128 candidates).
        seed: For the draw; None takes a fresh one.
    """

    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.8
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalty_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 10.0)
        _check_range("top_k", self.top_k, 0, 1 << 20)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -10.0, 10.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.1, 10.0)
        _check_range("penalty_last_n", self.penalty_last_n, 0, 1 << 20)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, 0xFFFFFFFE)

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty changes a logit."""
        return self.penalty_last_n > 0 and (self.presence_penalty != 0.0 or self.repetition_penalty != 1.0)


GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingConfig:
    """Whether a model thinks before it answers, for how long, and what is kept for the answer.

    Example:
        ``session.send("Is 91 prime?", thinking=ThinkingConfig(mode="on", budget=256, answer_tokens=100))``

    Attributes:
        mode: "on" and "off" overrule `/think` and `/no_think` in the text; "auto" follows them, and without one leaves
            the choice to the model's template. "auto" sets no budget of its own.
        budget: Most tokens that the model may think; None sets none. 0 closes a thought where it opens.
        answer_tokens: Tokens of max_tokens (and of the context) that a thought may not use. None keeps a quarter, at
            least 32 and at most 512, but never more than half.
        closing: What the model is made to say when its thought is cut, before the closing tag.
        stop_loops: Close a thought that repeats itself, and end an answer that does.
    """

    mode: ThinkingMode = "auto"
    budget: int | None = None
    answer_tokens: int | None = None
    closing: str = "I have thought enough, so I answer now."
    stop_loops: bool = True

    def __post_init__(self) -> None:
        _check_choice("thinking mode", self.mode, ("on", "off", "auto"))
        for name, value in (("thinking budget", self.budget), ("answer_tokens", self.answer_tokens)):
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} must be a whole number of tokens (not {value!r})")
            _check_range(name, value, 0, 1 << 24)
        if self.budget is not None and (self.mode == "off") != (self.budget == 0) and self.mode != "auto":
            raise ConfigError(f"thinking mode {self.mode!r} contradicts a thinking budget of {self.budget}")
        if "<think>" in self.closing or "</think>" in self.closing:
            raise ConfigError("closing is the sentence before the closing tag: it must not hold a tag itself")


ThinkingLike = ThinkingMode | int | ThinkingConfig


def thinking_config(thinking: ThinkingLike | None) -> ThinkingConfig:
    """Return a `thinking` argument in its full form: a mode, a number of tokens (0 is "off"), None for "auto".

    Raises:
        ConfigError: It is something else, or the number is negative.
    """
    if thinking is None:
        return ThinkingConfig()
    if isinstance(thinking, ThinkingConfig):
        return thinking
    if isinstance(thinking, int) and not isinstance(thinking, bool):
        return ThinkingConfig(mode="on" if thinking else "off", budget=thinking)
    if thinking in ("on", "off", "auto"):
        return ThinkingConfig(mode=thinking)
    raise ConfigError(
        f"thinking must be 'on', 'off', 'auto' or a number of tokens (not {thinking!r})",
        hint="A number is the most tokens that the model may think before it answers.",
    )
