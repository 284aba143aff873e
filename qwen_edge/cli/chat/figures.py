"""What an answer and a conversation cost."""

from __future__ import annotations

import psutil

from qwen_edge import device
from qwen_edge.cli.chat.conversation import Conversation
from qwen_edge.cli.output import format_bytes
from qwen_edge.cli.stream import stats_line


def stats_text(conversation: Conversation) -> str:
    """Return the figures of the last answer, the conversation, its context and the memory, a line each."""
    n_answers, tokens = conversation.n_answers, conversation.generated_tokens
    # As in GenerationStats: the first token of each answer comes from prefill.
    steps = max(tokens - n_answers, 0)
    speed = f", {steps / conversation.decode_s:.1f} tokens/s" if steps and conversation.decode_s > 0 else ""
    used = conversation.used_tokens()
    resident_bytes = psutil.Process().memory_info().rss
    lines = [
        ("last answer", stats_line(conversation.last) if conversation.last else "none yet"),
        ("all answers", f"{n_answers}, {tokens} tokens{speed}"),
        ("context", f"{used} of {conversation.n_ctx} tokens used ({used / conversation.n_ctx:.0%})"),
        ("memory", f"{format_bytes(resident_bytes)} now, {format_bytes(device.peak_memory_bytes())} at most"),
    ]
    return "\n".join(f"{name + ':':<13}{text}" for name, text in lines)
