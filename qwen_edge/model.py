"""A loaded model, and `load`."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qwen_edge import embedding, hub, session_file
from qwen_edge.async_call import call_in_thread
from qwen_edge.bundle.applying import bundle_at, with_bundle, with_bundled_tuning
from qwen_edge.bundle.record import Bundle
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.chat.tools import ToolLike
from qwen_edge.config import AUTO_N_CTX, LoadConfig, SpeculationMode
from qwen_edge.engines.base import Engine, ModelInfo
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import ClosedError, ConfigError, InsufficientMemoryError, QwenEdgeError
from qwen_edge.kv_fingerprint import kv_fingerprint
from qwen_edge.memory_check import require_memory
from qwen_edge.memory_guard import memory_guard
from qwen_edge.overflow import OnDrop, OverflowMode, OverflowPolicy
from qwen_edge.prefix_cache import PrefixCache, open_prefix_cache
from qwen_edge.prefix_turn import Prewarmed
from qwen_edge.session import Session
from qwen_edge.speculation_draft import check_same_vocabulary
from qwen_edge.tuned import apply_tuned

_log = logging.getLogger(__name__)


class Model:
    """Weights in memory, shared by any number of sessions, also in several threads.

    close() closes the sessions first, waits for a call in flight, and may be called any number of times.
    """

    def __init__(
        self, engine: Engine, chat_template: str | None = None, *, draft: Engine | None = None
    ) -> None:
        """Take over an engine; load() makes one from a file.

        Args:
            engine: Closed with the model, or at once when its template does not compile.
            chat_template: As in LoadConfig.
            draft: A small model that proposes tokens of replies; closed with the model.

        Raises:
            TemplateError: The template does not compile.
            ConfigError: The draft model has another vocabulary.
        """
        self._engine: Engine | None = engine
        self._draft = draft
        try:
            self._template = _template(engine.info, chat_template)
            if draft is not None:
                check_same_vocabulary(engine, draft)
        except QwenEdgeError:
            engine.close()
            if draft is not None:
                draft.close()
            raise
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.Lock()  # of the set: threads may begin and close sessions at once
        self._prefix_store: PrefixCache | None = None
        if engine.info.settings.get("prefix_cache"):
            template = self._template  # the function must not hold this object
            self._prefix_store = open_prefix_cache(lambda: kv_fingerprint(engine, template))

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

    def session(
        self,
        *,
        system: str | None = None,
        tools: Sequence[ToolLike] = (),
        constrained_calls: bool = True,
        on_overflow: OverflowMode = "error",
        on_drop: OnDrop | None = None,
        speculation: SpeculationMode | None = None,
    ) -> Session:
        """Begin a conversation with a KV cache of its own.

        Args:
            system: What the model is told before the first turn.
            tools: What the model may call: Python functions with type hints, which Session.run() calls; or JSON
                schemas, in OpenAI's form or as bare function objects.
            constrained_calls: A call that the model begins can only become one of these tools, with arguments that fit
                its schema (where llguidance is installed). False lets the model write what it will, mistakes included.
            on_overflow: When less than a quarter of the context (or than max_tokens) is left for a reply: "error" goes
                on until a prompt does not fit and raises ContextOverflowError; "drop_oldest" takes the oldest turns out,
                whole ones, until the prompt fills half the context; "summarise" does too, and the model's own summary of
                them takes their place. The system message and the tools stay.
            on_drop: Is told the messages that were taken out, each time. Without it a TurnsDroppedWarning is given.
            speculation: As in LoadConfig, for this session; None as the model was loaded.

        Raises:
            InsufficientMemoryError: What is free has become too little for the KV cache.
            NativeError: llama.cpp refuses to make it.
            UnsupportedError: Tools, and the template has no place for them.
            ConfigError: A tool is neither, or a function without type hints; on_overflow is none of the three; no draft
                model was loaded, and speculation is "draft".
        """
        policy = OverflowPolicy(mode=on_overflow, on_drop=on_drop)
        return self._new_session(
            speculation,
            system=system,
            tools=tools,
            constrained_calls=constrained_calls,
            overflow_policy=policy,
        )

    def _new_session(self, speculation: SpeculationMode | None = None, **settings: Any) -> Session:
        if speculation is None:
            speculation = self.info.settings.get("speculation", "off")
        if speculation == "draft" and self._draft is None:
            raise ConfigError("the model was loaded without a draft model", hint="load(..., draft_model=...)")
        session = Session(
            self.engine,
            self._template,
            on_close=self._forget,
            prefix_store=self._prefix_store,
            new_session=self._new_session,
            speculation=speculation,
            draft=self._draft if speculation == "draft" else None,
            **settings,
        )
        with self._lock:
            self._sessions.add(session)
        return session

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | None = None,
        is_query: bool = False,
        dimensions: int | None = None,
    ) -> NDArray[np.float32]:
        """Return a vector for each text: texts of like meaning have a large scalar product.

        Args:
            texts: One text or several; an empty list is fine.
            instruction: What the texts are compared for, one sentence in English: "Given a question, find the
                recipe that answers it". It makes queries of them.
            is_query: They are searched for, not searched in; without an instruction that of a web search is taken.
            dimensions: Keep this many of the model's; the first ones say most (Matryoshka).

        Returns:
            float32 [n_texts, dimensions], each row of length 1.

        Raises:
            UnsupportedError: It is no embedding model.
            ContextOverflowError: A text is longer than n_ctx; none is cut.
            ConfigError: dimensions out of range, or what is no text.

        Example::

            documents = model.embed(["Athens is the capital of Greece.", "Bread is baked."])
            query = model.embed("Which city governs Greece?", is_query=True)
            scores = (query @ documents.T)[0]
        """
        return embedding.embed(
            self.engine, texts, instruction=instruction, is_query=is_query, dimensions=dimensions
        )

    async def aembed(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | None = None,
        is_query: bool = False,
        dimensions: int | None = None,
    ) -> NDArray[np.float32]:
        """embed() for asyncio, in a thread of its own. A cancelled task ends it at its next batch of texts."""
        engine = self.engine
        return await call_in_thread(
            lambda is_cancelled: embedding.embed(
                engine,
                texts,
                instruction=instruction,
                is_query=is_query,
                dimensions=dimensions,
                is_cancelled=is_cancelled,
            )
        )

    def rerank(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[tuple[int, float]]:
        """Return documents by how well they answer a query, with a reranker.

        Args:
            query: What is asked.
            documents: Texts that may answer it.
            instruction: What counts as an answer, one sentence in English; None is the template's (a web search).

        Returns:
            (index in documents, probability of "yes" from 0 to 1), the best first.

        Raises:
            UnsupportedError: It is no reranker, or has no place for an instruction.
            ContextOverflowError: A document is longer than n_ctx; none is cut.
            ConfigError: What is no text.

        Example::

            for index, score in model.rerank("Which city governs Greece?", documents):
                print(f"{score:.3f}", documents[index])
        """
        return embedding.rerank(self.engine, query, documents, instruction=instruction)

    async def arerank(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> list[tuple[int, float]]:
        """rerank() for asyncio, in a thread of its own. A cancelled task ends it at its next batch of documents."""
        engine = self.engine
        return await call_in_thread(
            lambda is_cancelled: embedding.rerank(
                engine, query, documents, instruction=instruction, is_cancelled=is_cancelled
            )
        )

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)

    def restore_session(
        self,
        path: str | os.PathLike[str],
        *,
        on_overflow: OverflowMode = "error",
        on_drop: OnDrop | None = None,
    ) -> Session:
        """Return a session that Session.save() wrote, ready to go on.

        Its KV cache is taken from the file when weights, library, settings, adapters and template are as they were
        then. Otherwise the conversation is restored all the same and evaluated again at the next turn: a
        StateRebuiltWarning and `session.rebuilt_because` say what differs.

        Args:
            path: The file.
            on_overflow: As in session(); it is not in the file.
            on_drop: As in session().

        Raises:
            FormatError: The file is damaged, or no saved session.
            OSError: It cannot be read.
            NativeError, UnsupportedError: As in session().
        """
        messages, tools, content = session_file.read_session(path)
        session = self.session(tools=tools, on_overflow=on_overflow, on_drop=on_drop)
        session.messages[:] = messages
        session_file.restore_cache(session, content, kv_fingerprint(self.engine, self._template))
        return session

    def prewarm(self, *, system: str | None = None, tools: Sequence[ToolLike] = ()) -> Prewarmed:
        """Evaluate a system prompt with tools now and keep it on disk, so that first answers come at once.

        Sessions with the same two do so themselves at their first turn. This is for an installer, or for the moment
        when an application starts.

        ::

            with qwen_edge.load("model.gguf") as model:
                print(model.prewarm(system=SYSTEM, tools=TOOLS).status)

        Raises:
            ContextOverflowError: They do not fit in the context.
            NativeError, UnsupportedError: As in session().
        """
        with self.session(system=system, tools=tools) as session:
            return session._prefixes.prewarm(session._idle_cache(), session.messages, session.tools)

    def close(self) -> None:
        """Close the sessions and free the weights."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        if self._prefix_store is not None:
            self._prefix_store.wait()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(name_or_path: str | os.PathLike[str], config: LoadConfig | None = None, **settings: Any) -> Model:
    """Load a model.

    Args:
        name_or_path: A GGUF file, a folder that was exported to ONNX, a bundle, or the name of a model in the catalog.
            A bundle brings settings for what is not asked for.
        config: How to load it.
        **settings: Single fields of LoadConfig, in place of or on top of `config`: load(path, n_ctx=2048), or
            load(path, adapters=["a.gguf", ("b.gguf", 0.5)]).

    Raises:
        ModelNotFoundError: No such file or name.
        FormatError: A file is damaged (GGUFError for a GGUF file), or its chat template does not compile (TemplateError).
        ConfigError: A setting is unknown, out of range or for the other kind of model, or an adapter was made for
            another model.
        NativeMissingError: llama.cpp is not built here.
        MissingExtraError: onnxruntime is not installed, for an ONNX folder.
        InsufficientMemoryError: It does not fit in the memory that is free, with its context full; or its draft model
            does not fit beside it.
    """
    config = _merge(config or LoadConfig(), settings)
    bundle = bundle_at(name_or_path)
    path = hub.locate(name_or_path)
    _log.debug("loading %s", path)
    if bundle is not None:
        config = with_bundle(bundle, config, settings)
    engine = _tuned_engine(path, config, settings, bundle)
    draft = _draft_engine(engine, config) if config.draft_model is not None else None
    model = Model(engine, config.chat_template, draft=draft)
    info = model.info
    _log.debug(
        "loaded by %s: %s, %d weights, %s", info.engine, info.architecture, info.n_params, info.settings
    )
    return model


def _template(info: ModelInfo, asked: str | None) -> ChatTemplate:
    if asked is None:
        return ChatTemplate(info.chat_template, info.special_texts, path=info.path)
    return ChatTemplate("" if asked == "chatml" else asked, info.special_texts)


def _tuned_engine(
    path: Path, config: LoadConfig, asked: Mapping[str, Any], bundle: Bundle | None = None
) -> Engine:
    """Load the engine with what tuning found, or without that where it takes more memory than is free."""
    tuned = apply_tuned(path, config, asked)
    if tuned is config and bundle is not None:
        tuned = with_bundled_tuning(bundle, config, asked)
    try:
        return _engine(path, tuned)
    except InsufficientMemoryError:
        if tuned is config:
            raise
    return _engine(path, config)


def _engine(path: Path, config: LoadConfig) -> Engine:
    """Load the engine that runs what stands at a path, where there is memory for it.

    An automatic context is chosen anew, once, where other programs took memory while the weights were read.
    """
    try:
        return _engine_within(path, require_memory(path, config))
    except InsufficientMemoryError:
        if config.n_ctx != AUTO_N_CTX:
            raise
    return _engine_within(path, require_memory(path, config))


def _engine_within(path: Path, config: LoadConfig) -> Engine:
    """Load an engine; what it takes is looked after in steps."""
    if is_onnx(path):
        from qwen_edge.engines.onnx import OnnxEngine

        return OnnxEngine(path, config)
    guard = memory_guard(path, config)
    if guard is not None:
        guard.before_weights(0.0)  # first: the library takes some MB too
    from qwen_edge.engines.llama import LlamaEngine

    engine = LlamaEngine(path, config, watch=guard)
    if guard is not None:
        try:
            guard.after_loading()
        except InsufficientMemoryError:
            engine.close()
            raise
    return engine


def _draft_engine(engine: Engine, config: LoadConfig) -> Engine:
    """Load the draft model beside a model that is there already, with a context of the same length."""
    assert config.draft_model is not None, "Bug: no draft model to load"
    settings = replace(
        config,
        n_ctx=engine.info.settings["n_ctx"],
        speculation="off",
        draft_model=None,
        adapters=(),
        prefix_cache=False,
    )
    try:
        return _engine(hub.locate(config.draft_model), settings)
    except QwenEdgeError as error:
        engine.close()
        if isinstance(error, InsufficientMemoryError):
            raise InsufficientMemoryError(
                f"the model fits, its draft model does not fit beside it: {error.message}",
                hint="Leave draft_model out, or take a smaller n_ctx.",
            ) from None
        raise


def _merge(config: LoadConfig, settings: Mapping[str, Any]) -> LoadConfig:
    known = {field.name for field in fields(LoadConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}", hint=f"Settings: {', '.join(sorted(known))}."
        )
    return replace(config, **settings)
