"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from qwen_edge.byte_sizes import parse_bytes
from qwen_edge.config import (
    AUTO_N_CTX,
    DEFAULT_N_CTX,
    KV_TYPES,
    QUANTIZED_KV_TYPES,
    AdapterConfig,
    KVType,
    LoadConfig,
    SamplingConfig,
    SpeculationMode,
    Switch,
    ThinkingLike,
    thinking_config,
)
from qwen_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What the person asked for: how to load, how to answer.

    `asked` repeats settings of `load` that were given on the command line although they may be the default: tuning and
    bundles leave those alone.
    """

    load: LoadConfig
    thinking: ThinkingLike | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    asked: dict[str, Any] = field(default_factory=dict)

    def sampling(self, recommended: SamplingConfig) -> SamplingConfig:
        """Return the recommended sampling with what was asked for in its place."""
        import dataclasses

        asked: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
        }
        return dataclasses.replace(
            recommended, **{name: value for name, value in asked.items() if value is not None}
        )


def parse_thinking(value: str) -> ThinkingLike:
    """Return what `--thinking on|off|auto|N` asks for."""
    try:
        return thinking_config(int(value) if value.strip().isdecimal() else value.strip())  # type: ignore[arg-type]
    except ConfigError:
        raise click.BadParameter(
            f"{value!r} is neither on, off, auto nor a number of tokens, as in --thinking 256."
        ) from None


def parse_adapter(value: str) -> AdapterConfig:
    """Return what PATH or PATH:SCALE asks for; a file of the whole name, or no number behind the colon, is a path."""
    path, colon, scale = value.rpartition(":")
    if not colon or Path(value).exists():
        return AdapterConfig(path=Path(value))
    try:
        number = float(scale)
    except ValueError:
        return AdapterConfig(path=Path(value))
    return AdapterConfig(path=Path(path), scale=number)


def parse_chat_template(value: str) -> str:
    """Return what `--chat-template chatml|FILE` asks for: the word, or the text of the file."""
    if value == "chatml":
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"{value!r} is neither chatml nor a file that can be read: {error}"
        ) from None


def parse_size(value: str) -> int:
    """Return the bytes that "1GB", "512 MB", "1.5GiB" or a number say."""
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


load_mode_option = click.option(
    "--load-mode",
    type=click.Choice(["read", "mmap"]),
    default="read",
    show_default=True,
    help="Whether the weights are read or the file is mapped.",
)


def merged_adapter_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds `--adapter DIR[:SCALE]`, PEFT folders, as the parameter `adapters`."""
    return click.option(
        "--adapter", "adapters", type=parse_adapter, metavar="DIR[:SCALE]", multiple=True, help=help_text
    )


class _NCtx(click.IntRange):
    """A number of tokens, or "auto"."""

    name = "context"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; AUTO_N_CTX for "auto"."""
        return AUTO_N_CTX if value == "auto" else int(super().convert(value, param, ctx))


n_ctx_option = click.option(
    "--n-ctx",
    type=_NCtx(min=16),
    default=DEFAULT_N_CTX,
    show_default=True,
    metavar="N|auto",
    help="Context, in tokens; auto takes the largest that fits in memory.",
)

kv_type_option = click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES),
    default="f16",
    show_default=True,
    help="Type of the KV cache; q8_0 and q4_0 take half and a quarter of it, and come with flash attention.",
)
flash_attention_option = click.option(
    "--flash-attention",
    type=click.Choice(["on", "off"]),
    help="On reads long prompts faster, off answers faster. Default: off, or as --kv-type needs.",
)


def flash_attention_for(kv_type: KVType, asked: Switch | None) -> Switch:
    """Return what was asked for, else what a type of the KV cache needs."""
    return asked or ("on" if kv_type in QUANTIZED_KV_TYPES else "off")


_OPTIONS = (
    click.option("--thinking", type=parse_thinking, metavar="on|off|auto|N",
                 help="Think first, answer at once, as the model is used to, or think for at most N tokens. Default: auto."),
    click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Stop after this many tokens, thinking included."),
    n_ctx_option,
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads. Default: the physical cores, on ARM without the little ones."),
    flash_attention_option,
    kv_type_option,
    click.option("--provider", default="cpu", show_default=True,
                 help="Where an ONNX model runs: cpu, openvino, or another of the installed ONNX Runtime."),
    click.option("--adapter", "adapters", type=parse_adapter, metavar="FILE[:SCALE]", multiple=True,
                 help="GGUF adapter (LoRA) that acts on the model; may be given again."),
    click.option("--chat-template", type=parse_chat_template, metavar="chatml|FILE",
                 help="Use plain ChatML, or the Jinja template in a file. Default: the model's own."),
    click.option("--speculation", type=click.Choice(["off", "prompt_lookup"]), default="off", show_default=True,
                 help="prompt_lookup evaluates several tokens at once where the text repeats itself: faster at rewriting a text."),
    click.option("--draft-model", type=click.Path(path_type=Path), metavar="NAME|FILE",
                 help="Have a small model of the same family guess tokens that the model then checks together."),
    click.option("--no-prefix-cache", is_flag=True, help="Keep no evaluated system prompt on disk for the next start."),
    click.option("--no-tuned", is_flag=True, help="Leave out the settings that qwen-edge tune found."),
    click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="0 always takes the likeliest token. Default: Qwen's advice."),
    click.option("--top-p", type=click.FloatRange(0, 1), metavar="P", help="Keep the likeliest tokens that together reach this probability. Default: Qwen's advice."),
    click.option("--top-k", type=click.IntRange(min=0), metavar="N", help="Keep this many of the likeliest tokens, 0 all. Default: Qwen's advice."),
    click.option("--seed", type=click.IntRange(min=0), metavar="N", help="The same seed gives the same answer on one machine and build."),
)  # fmt: skip


def generation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options above; the command gets them as one parameter, `options`."""

    @functools.wraps(function)
    def with_options(
        *args: Any,
        thinking: ThinkingLike | None,
        max_tokens: int | None,
        n_ctx: int,
        threads: int | None,
        flash_attention: Switch | None,
        kv_type: KVType,
        provider: str,
        adapters: tuple[AdapterConfig, ...],
        chat_template: str | None,
        speculation: SpeculationMode,
        draft_model: Path | None,
        no_prefix_cache: bool,
        no_tuned: bool,
        temperature: float | None,
        top_p: float | None,
        top_k: int | None,
        seed: int | None,
        **kwargs: Any,
    ) -> Any:
        load = LoadConfig(
            n_ctx=n_ctx,
            n_threads=threads,
            flash_attention=flash_attention_for(kv_type, flash_attention),
            kv_type=kv_type,
            provider=provider,
            adapters=adapters,
            prefix_cache=not no_prefix_cache,
            speculation=speculation,
            draft_model=draft_model,
            chat_template=chat_template,
            tuned=not no_tuned,
        )
        asked: dict[str, Any] = {"flash_attention": flash_attention} if flash_attention else {}
        source = click.get_current_context().get_parameter_source("n_ctx")
        if source is click.core.ParameterSource.COMMANDLINE:
            asked["n_ctx"] = n_ctx
        options = GenerationOptions(load, thinking, max_tokens, temperature, top_p, top_k, seed, asked)
        return function(*args, options=options, **kwargs)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
