"""Showing a reply while it comes: the answer on stdout, the rest on stderr."""

from __future__ import annotations

import json
import os
import sys

import click

from qwen_edge.session import ReplyStream
from qwen_edge.types import Reply


def show_stream(stream: ReplyStream) -> None:
    """Print a reply piece by piece; thinking is dimmed where the terminal can."""
    last = ""
    for chunk in stream:
        if chunk.kind == "thinking":
            _dim(("thinking: " if last != "thinking" else "") + chunk.text)
        else:
            if last == "thinking":
                click.echo(err=True)
            if chunk.tool_call is not None:
                click.echo(f"tool call: {json.dumps(chunk.tool_call.to_dict(), ensure_ascii=False)}")
            else:
                click.echo(chunk.text, nl=False)
        last = chunk.kind
    click.echo(err=last == "thinking")


def show_stats(reply: Reply) -> None:
    """Print what the reply cost, on one dim line."""
    stats = reply.stats
    parts = [
        f"{stats.generated_tokens} tokens",
        f"{stats.decode_tokens_per_s:.1f} tokens/s",
        f"first after {stats.ttft_s:.2f} s",
        f"prompt {stats.prompt_tokens} ({stats.cached_tokens} cached)",
        f"peak {stats.peak_memory_bytes / 1e6:.0f} MB",
    ]
    if reply.finish_reason != "stop":
        parts.insert(
            0, {"length": "cut off by the token limit"}.get(reply.finish_reason, reply.finish_reason)
        )
    _dim(", ".join(parts) + "\n")


def _dim(text: str) -> None:
    wants_colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    click.echo(click.style(text, dim=True) if wants_colour else text, nl=False, err=True)
