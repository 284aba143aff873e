"""The conversation: history, template and tools around the decode loop of generation.py."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from qwen_edge import history
from qwen_edge.catalog import recommended_sampling
from qwen_edge.chat import constraint
from qwen_edge.chat.call_guide import CallForms, ToolCallGuide
from qwen_edge.chat.template import ChatTemplate, ThinkingSupport, opens_thought
from qwen_edge.chat.thinking import ThinkingPlan, plan_thinking
from qwen_edge.chat.tools import ToolLike, split_tools
from qwen_edge.config import SamplingConfig, SpeculationMode, ThinkingLike, thinking_config
from qwen_edge.embedding import check_chats
from qwen_edge.engines.base import Engine
from qwen_edge.errors import CancelledError, ClosedError, ConfigError, UnsupportedError
from qwen_edge.generation import GenerationRequest, Meter, Outcome, TokenCache, generate
from qwen_edge.openai_format import Turn, as_messages
from qwen_edge.overflow import OverflowPolicy
from qwen_edge.prefix_cache import PrefixCache
from qwen_edge.prefix_turn import SessionPrefixes
from qwen_edge.reply_options import ReplyOptions, StreamOptions, check_options
from qwen_edge.reply_slot import ReplySlot
from qwen_edge.session_asking import SessionAsking
from qwen_edge.session_history import SessionHistory
from qwen_edge.speculation import new_speculation
from qwen_edge.types import Chunk, Message, Reply, TokenLogprob


class Session(SessionHistory, SessionAsking):
    """One conversation with a model.

    Keeps the history and a KV cache. A turn renders the whole history with the model's chat template, keeps the
    cache up to the longest common prefix of tokens, and evaluates the rest. (Templates drop earlier thoughts, so a
    turn is not always a prefix of the next.)

    Not for two threads at once, except cancel().

    Attributes:
        constrained_calls: See Model.session(); may be changed between two turns.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        *,
        system: str | None = None,
        tools: Sequence[ToolLike] = (),
        constrained_calls: bool = True,
        on_close: Callable[[Session], None] = lambda session: None,
        overflow_policy: OverflowPolicy | None = None,
        prefix_store: PrefixCache | None = None,
        new_session: Callable[..., Session] | None = None,
        speculation: SpeculationMode = "off",
        draft: Engine | None = None,
    ) -> None:
        """Made by Model.session()."""
        schemas, self.functions = split_tools(tools)
        self.tools = tuple(_as_openai_tool(tool) for tool in schemas)
        self.constrained_calls = constrained_calls
        self._call_forms: CallForms | None = None
        if self.tools and not template.takes_tools:
            raise UnsupportedError("the model's chat template has no place for tools")
        self.messages: list[Message] = [Message("system", system)] if system else []
        self._engine = engine
        self._template = template
        context = engine.new_context()
        self._cache: TokenCache | None = TokenCache(
            context, new_speculation(engine, context, speculation, draft)
        )
        self._on_close = on_close
        self._slot = ReplySlot()
        self._overflow = overflow_policy or OverflowPolicy()
        self._prefixes = SessionPrefixes(engine, template, prefix_store)
        self._new_session = new_session

    def send(self, turn: Turn, **options: Unpack[ReplyOptions]) -> Reply:
        """Say something and wait for the whole answer. Arguments and errors as in stream()."""
        return self.stream(turn, **options).finish()

    def stream(self, turn: Turn, **options: Unpack[StreamOptions]) -> ReplyStream:
        """Say something and get the answer piece by piece.

        Args:
            turn: What the user says, or messages (tool results, say) to add to the history; messages may be
                dictionaries in OpenAI's form: [{"role": "user", "content": "Hi"}].
            **options: The keywords that follow; each may be left out, or None.
            thinking: "on", "off", a number (most tokens to think; at the last the thought is closed and the answer
                follows; 0 is "off"), or a ThinkingConfig. "auto", like None, follows the last `/think` or `/no_think` in
                the text, else the model's own default, without a budget. The others overrule the text.
            max_tokens: Most tokens to generate, thinking included; None goes on to the end of the context. A thought
                leaves a share of them to the answer: see ThinkingConfig.answer_tokens.
            sampling: How tokens are chosen; None takes what Qwen recommends for the model and mode.
            timeout_s: End the reply after this many seconds, counted from the moment its first chunk is asked for,
                with the finish_reason "cancelled". It stops the reading of a long prompt too: the reply is empty
                then, and the turn is taken back.
            logprobs: Tell each token's log-probability (`reply.logprobs`) and this many most likely alternatives, 0
                to 100; None tells none, and costs nothing.
            guide: Which tokens are allowed; None holds tool calls to the tools on offer, unless constrained_calls is
                False, and leaves the rest free.

        Returns:
            An iterator of chunks. When it is exhausted, `.reply` has the whole answer with its stats.

        Raises:
            ContextOverflowError: History and turn do not fit; the history is as before. (At the first chunk.)
            UnsupportedError: thinking="on" or a number above 0 for a model that does not think, or "off" for one that
                always does (a number holds for the latter, 0 included); or an embedding model or reranker, which does
                not chat.
            ConfigError: max_tokens below 1, a message or a setting that is none, or another reply is still being
                streamed. (One that was cancelled is ended, or waited for.)
            TypeError: There is no such keyword.
            ClosedError: After close().

        Example:
            >>> stream = session.stream("Is 91 prime?", thinking=128, max_tokens=300)
            >>> for chunk in stream:
            ...     print(chunk.kind, chunk.text)
            >>> stream.reply.finish_reason, stream.reply.stats.thinking_tokens
            ('thinking_budget', 128)
        """
        return self._begin(as_messages(turn), options)

    def _begin(
        self,
        added: list[Message],
        options: StreamOptions,
        *,
        replaces_reply: bool = False,
        patience_s: float = 0.0,
    ) -> ReplyStream:
        """Return a reply that begins with its first chunk.

        Args:
            added: Messages that go into the history.
            options: See stream().
            replaces_reply: It takes the place of the last one.
            patience_s: See ReplySlot.held(); with 0 the slot has to be free now already.
        """
        check_options(options)
        check_chats(self._engine)
        thinking = options.get("thinking")
        plan = self._thinking_plan(thinking, added)
        sampling = options.get("sampling") or self.recommended_sampling(thinking, added)
        self._open_cache()
        if not patience_s:
            self._slot.wait()
        outcome = Outcome()
        chunks = self._turn(added, plan, sampling, options, outcome, replaces_reply, patience_s)
        return ReplyStream(chunks, outcome)

    def stream_tokens(
        self, tokens: Sequence[int], *, max_tokens: int, sampling: SamplingConfig, ignore_end: bool = False
    ) -> ReplyStream:
        """Continue raw tokens, past the template and the history: for measurements and for completion of text.

        Args:
            tokens: The whole prompt; what of it is in the KV cache already is not evaluated again.
            max_tokens: Most tokens to generate.
            sampling: How tokens are chosen.
            ignore_end: Go on past end tokens, so that exactly max_tokens are generated.

        Raises:
            ContextOverflowError: They do not fit. (At the first chunk.)
            ConfigError: No tokens, max_tokens below 1, or another reply is still being streamed.
            ClosedError: After close().
        """
        if not tokens or max_tokens < 1:
            raise ConfigError(f"at least one token in and one out (not {len(tokens)} and {max_tokens})")
        self._idle_cache()
        outcome = Outcome()
        request = GenerationRequest(
            tokens=tokens, sampling=sampling, max_tokens=max_tokens, ignore_end=ignore_end
        )
        return ReplyStream(self._continue(request, outcome), outcome)

    def _turn(
        self,
        added: list[Message],
        plan: ThinkingPlan,
        sampling: SamplingConfig,
        options: StreamOptions,
        outcome: Outcome,
        replaces_reply: bool,
        patience_s: float,
    ) -> Generator[Chunk, None, None]:
        """Add a turn to the history and generate its reply; without a token generated all is as before."""
        meter = Meter()
        max_tokens, guide = options.get("max_tokens"), options.get("guide")
        with self._generating(outcome, options.get("timeout_s"), patience_s) as cache:
            replaced: list[Message] = []
            if replaces_reply:
                start = history.last_reply_start(self.messages)
                replaced = self.messages[start:]
                del self.messages[start:]
            self.messages += added
            try:
                render = functools.partial(self._render_as, plan)
                prompt = render(self.messages)
                tokens = self._engine.tokenize(prompt)
                if self._overflow.wants_room(len(tokens), cache.context.n_ctx, max_tokens):
                    self._overflow.make_room(
                        self._engine, cache, self.messages, len(added), render,
                        functools.partial(self._render, enable_thinking=self._without_thinking),
                    )  # fmt: skip
                    prompt = render(self.messages)
                    tokens = self._engine.tokenize(prompt)
                request = GenerationRequest(
                    tokens=tokens,
                    sampling=sampling,
                    max_tokens=max_tokens,
                    starts_thinking=opens_thought(prompt),
                    # With a guide the answer is what was asked for, even where it looks like a bare call.
                    tool_names=() if guide else tuple(tool["function"]["name"] for tool in self.tools),
                    logprobs=options.get("logprobs"),
                    thinking=plan.limits,
                    checkpoint=self._prefixes.begin_turn(
                        cache, tokens, plan.visible(self.messages), self.tools, plan.enable_thinking, meter
                    ),
                    guide=guide or self._tool_guide(),
                )
                yield from generate(self._engine, cache, request, meter, outcome)
            except CancelledError:  # while the earlier conversation was summarised
                outcome.reply = Reply("", "", (), "cancelled", meter.stats())
            finally:
                if outcome.reply is not None and outcome.reply.stats.generated_tokens > 0:
                    self.messages.append(outcome.reply.message)
                else:
                    self.messages[len(self.messages) - len(added) :] = replaced

    def _render_as(self, plan: ThinkingPlan, messages: Sequence[Message]) -> str:
        return self._render(plan.visible(messages), plan.enable_thinking)

    def _render(self, messages: Sequence[Message], enable_thinking: bool | None) -> str:
        return self._template.render(messages, tools=self.tools, enable_thinking=enable_thinking)

    @property
    def _without_thinking(self) -> bool | None:
        """Value of the template's enable_thinking for text of our own making; None where it has no such switch."""
        return False if self._template.thinking is ThinkingSupport.SWITCHED else None

    def _tool_guide(self) -> constraint.Guide | None:
        """Return what holds calls to the tools on offer; without llguidance they are checked when they are whole."""
        if not (self.tools and self.constrained_calls and constraint.is_available()):
            return None
        if self._call_forms is None:
            vocabulary = functools.partial(constraint.vocabulary_of, self._engine)
            self._call_forms = CallForms(self.tools, vocabulary)
        return ToolCallGuide(self._call_forms)

    def _continue(self, request: GenerationRequest, outcome: Outcome) -> Generator[Chunk, None, None]:
        meter = Meter()
        with self._generating(outcome) as cache:
            yield from generate(self._engine, cache, request, meter, outcome)

    def _open_cache(self) -> TokenCache:
        """Return the cache.

        Raises:
            ClosedError: After close().
        """
        if self._cache is None:
            raise ClosedError("the session is closed")
        return self._cache

    def _idle_cache(self) -> TokenCache:
        """Return the cache when no reply is in flight.

        Raises:
            ClosedError: After close().
            ConfigError: A reply is being streamed.
        """
        cache = self._open_cache()
        self._slot.wait()
        return cache

    @contextlib.contextmanager
    def _generating(
        self, outcome: Outcome, timeout_s: float | None = None, patience_s: float = 0.0
    ) -> Iterator[TokenCache]:
        """Hold the session for one reply."""
        with self._slot.held(outcome, patience_s):
            cache = self._open_cache()
            with outcome.cancellation.watching(cache, timeout_s):
                yield cache

    def recommended_sampling(self, thinking: ThinkingLike | None = None, turn: Turn = ()) -> SamplingConfig:
        """Return the sampling that the authors of this model recommend for a mode; stream()'s default.

        Args:
            thinking: As for stream().
            turn: What will be said, which may hold a switch.
        """
        config = thinking_config(thinking)
        switchable = self._template.thinking is ThinkingSupport.SWITCHED
        plan = self._thinking_plan(config if switchable else None, as_messages(turn))
        info = self._engine.info
        return recommended_sampling(info.architecture, thinking=plan.mode != "off", name=info.name)

    def may_think(self, thinking: ThinkingLike | None) -> bool:
        """Return whether a reply in a mode may begin with a thought."""
        return self._template.thinking is not ThinkingSupport.NEVER and thinking != "off"

    def cancel(self) -> None:
        """Stop the reply being streamed, within a token. Callable from any thread."""
        self._slot.cancel()

    def close(self) -> None:
        """Free the KV cache, after the call in flight. Any number of times."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()
            self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _thinking_plan(self, thinking: ThinkingLike | None, added: Sequence[Message]) -> ThinkingPlan:
        """Return what becomes of a turn's thinking; errors as in stream()."""
        return plan_thinking(
            thinking_config(thinking),
            self._template.thinking,
            [*self.messages, *added],
            model_name=self._engine.info.name,
        )


class ReplyStream:
    """One answer being generated: iterate for chunks, then read `.reply`.

    Ctrl-C, close() and leaving the loop early all end the reply where it is: what was generated stays in the
    history with finish_reason "cancelled", and the session goes on. When it ends before the first token, by an
    error or otherwise, the turn is taken out of the history again.
    """

    def __init__(self, chunks: Generator[Chunk, None, None], outcome: Outcome) -> None:
        # The generator must not refer to this object: leaving a for loop ends it because nothing else holds it.
        self._chunks = chunks
        self._outcome = outcome
        outcome.watch(chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._outcome.lock:
            return next(self._chunks)

    def finish(self) -> Reply:
        """Generate the rest and return the whole answer."""
        for _ in self:
            pass
        return self.reply

    def cancel(self) -> None:
        """End the reply within a token, also while its prompt is read. Callable from any thread."""
        self._outcome.cancellation.cancel()

    def close(self) -> None:
        """End the reply here, behind the thread that may be inside."""
        with self._outcome.lock:
            self._chunks.close()

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            ConfigError: The stream has not ended yet.
        """
        if self._outcome.reply is None:
            raise ConfigError("the reply is not complete", hint="Read the stream to its end first.")
        return self._outcome.reply

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of the tokens so far; () unless asked for."""
        return tuple(self._outcome.logprobs)


def _as_openai_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool in OpenAI's form; the bare function object is accepted too."""
    if tool.get("type") == "function" and isinstance(tool.get("function"), Mapping):
        return dict(tool)
    if isinstance(tool.get("name"), str):
        return {"type": "function", "function": dict(tool)}
    raise ConfigError(
        f"a tool must be a JSON schema with a name (not {tool!r})",
        hint='Form: {"name": …, "description": …, "parameters": {"type": "object", "properties": {…}}}',
    )
