"""A loaded model, and `load`."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qwen_edge import hub
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.chat.tools import ToolLike
from qwen_edge.config import LoadConfig
from qwen_edge.engines.base import Engine, ModelInfo
from qwen_edge.errors import ClosedError
from qwen_edge.session import Session


class Model:
    """Weights in memory, shared by any number of sessions.

    close() closes the sessions first, waits for a call in flight, and may be called any number of times.
    """

    def __init__(self, engine: Engine) -> None:
        """Take over an engine; load() makes one from a file."""
        self._engine: Engine | None = engine
        self._template = ChatTemplate(engine.info.chat_template, engine.info.special_texts)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    @property
    def engine(self) -> Engine:
        """The engine below.

        Raises:
            ClosedError: After close().
        """
        if self._engine is None:
            raise ClosedError("the model is closed")
        return self._engine

    @property
    def info(self) -> ModelInfo:
        """Facts of the model."""
        return self.engine.info

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return self._template

    def session(self, *, system: str | None = None, tools: Sequence[ToolLike] = ()) -> Session:
        """Begin a conversation with a KV cache of its own.

        Args:
            system: What the model is told before the first turn.
            tools: What the model may call: Python functions with type hints, which Session.run() calls; or JSON
                schemas, in OpenAI's form or as bare function objects.

        Raises:
            NativeError: No memory for the KV cache.
            UnsupportedError: Tools, and the template has no place for them.
            ConfigError: A tool is neither, or a function without type hints.
        """
        session = Session(
            self.engine, self._template, system=system, tools=tools, on_close=self._sessions.discard
        )
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """Close the sessions and free the weights."""
        for session in list(self._sessions):
            session.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(name_or_path: str | os.PathLike[str], config: LoadConfig | None = None, **settings: Any) -> Model:
    """Load a model.

    Args:
        name_or_path: A GGUF file, or the name of a model in the catalog.
        config: How to load it.
        **settings: Single fields of LoadConfig, in place of or on top of `config`: load(path, n_ctx=2048), or
            load(path, adapters=["a.gguf", ("b.gguf", 0.5)]).

    Raises:
        ModelNotFoundError: No such file or name.
        GGUFError: The file is damaged.
        ConfigError: A setting is unknown or out of range, or an adapter was made for another model.
        NativeMissingError: llama-cpp-python is not installed.
    """
    path: Path = hub.locate(name_or_path)
    from qwen_edge.engines.llama import LlamaEngine

    return Model(LlamaEngine(path, _merge(config or LoadConfig(), settings)))


def _merge(config: LoadConfig, settings: Mapping[str, Any]) -> LoadConfig:
    from qwen_edge.errors import ConfigError

    known = {field.name for field in dataclasses.fields(LoadConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}", hint=f"Settings: {', '.join(sorted(known))}."
        )
    return dataclasses.replace(config, **settings)
