"""Whether prompt lookup pays on the user's own prompts, with the settings that tuning found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qwen_edge.config import LoadConfig
from qwen_edge.errors import ConfigError
from qwen_edge.files import reading
from qwen_edge.model import load
from qwen_edge.speculation_trial import measure
from qwen_edge.tuned import TuneRecord
from qwen_edge.types import Message

# It is switched on where it gains so much: less is noise, or near enough.
_LEAST_GAIN = 1.05
_MOST_PROMPTS = 8
_ANSWER_TOKENS = 96
_TURNS = 3


def read_prompts(path: Path) -> list[str]:
    """Return the prompts in a text file, one a line; a line that is a JSON string may hold several lines.

    Raises:
        ConfigError: It holds none, or is no UTF-8.
        ReadError: It cannot be read.
    """
    try:
        with reading(path):
            lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error}", hint="Save it as UTF-8.") from error
    prompts = [_prompt(line) for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(
            f"{path} holds no prompt", hint="Write one a line, as they are asked in your application."
        )
    return prompts[:_MOST_PROMPTS]


def _prompt(line: str) -> str:
    if line.lstrip().startswith('"'):
        try:
            value = json.loads(line)
        except ValueError:
            return line
        return value if isinstance(value, str) else line
    return line


def with_speculation(path: Path, record: TuneRecord, prompts: Sequence[str]) -> TuneRecord:
    """Return a record that also tells whether prompt lookup pays: the prompts answered with and without it, in turns.

    Args:
        path: The model's file or folder.
        record: What was found for it; for one session.
        prompts: The user's.

    Raises:
        ConfigError: The record is for several sessions.
        QwenEdgeError: As load() and Session.send().
    """
    if record.workload.n_sessions > 1:
        raise ConfigError(
            "prompts are tried for one session, and this is for several",
            hint="Leave --prompts or --sessions out: sessions that decode together do not speculate.",
        )
    config = record.settings.config(LoadConfig(tuned=False))
    with load(path, config) as model:
        tokens = [model.engine.tokenize(model.template.render([Message("user", text)])) for text in prompts]
        n_tokens = min(_ANSWER_TOKENS, record.workload.answer_tokens)
        trial = measure(model, tokens, max_tokens=n_tokens, turns=_TURNS)
    wins = trial.gain >= _LEAST_GAIN
    return replace(
        record, speculation="prompt_lookup" if wins else "off", speculation_gain=round(trial.gain, 3)
    )
