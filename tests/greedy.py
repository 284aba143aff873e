"""Greedy decoding below sessions: what is compared with tokens of transformers."""

from __future__ import annotations

from qwen_edge import Model
from qwen_edge.config import GREEDY


def greedy(model: Model, prompt: list[int], max_tokens: int) -> list[int]:
    """Return the tokens that follow a prompt, the end token included."""
    context = model.engine.new_context()
    context.start_sampling(GREEDY)
    context.append(prompt)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        tokens.append(context.sample())
        if model.engine.is_end(tokens[-1]):
            break
        context.append(tokens[-1:])
    context.close()
    return tokens
