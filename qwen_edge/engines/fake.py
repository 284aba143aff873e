"""An engine without a model: says what it is told to, in milliseconds. For tests of code built on qwen-edge.

Tokens are the bytes of the text; Qwen's markers are one token each, as in the real vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig, SamplingConfig
from qwen_edge.engines.base import Context, Engine, ModelInfo, PoolingInfo, TokenConstraint
from qwen_edge.errors import CancelledError, ClosedError, ContextOverflowError, FormatError

MARKERS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
_FIRST_MARKER = 256
_CONTROL = 3  # the first three print as nothing

# The least template with Qwen3's switches: tools, thinking, tool results; thoughts of earlier turns are dropped.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

Script = Callable[[str], str]


_CLOSERS = tuple(b'"}]')


def _ends_soonest(tokens: Sequence[int]) -> int:
    return next((closer for closer in _CLOSERS if closer in tokens), tokens[0])


class FakeContext(Context):
    """A list of tokens in place of a KV cache."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.n_ctx = engine.config.n_ctx
        self.n_batch = min(engine.config.n_batch, self.n_ctx)
        self._tokens: list[int] = []
        self._length = 0  # of the tokens, those that the selected logits follow
        self._planned: list[int] | None = None
        self._sampled: int | None = None
        self._is_continued = False
        self._forbidden: frozenset[int] = frozenset()
        self._cancelled = False
        self._closed = False
        self._kept_from = 0
        self.evaluated_tokens = 0
        self.sampling: SamplingConfig | None = None

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    def append(self, tokens: Sequence[int], *, wants_logits: bool = True) -> None:
        """See Context.append."""
        self._append(tokens)
        self._go_on(tokens, len(self._tokens))

    @property
    def most_kept_logits(self) -> int:
        """See Context.most_kept_logits."""
        return self.n_batch if self._engine.config.n_sessions == 1 else 0

    def append_all(self, tokens: Sequence[int]) -> None:
        """See Context.append_all."""
        self._append(tokens)
        self._go_on(tokens[:1], len(self._tokens) - len(tokens) + 1)
        self._kept_from = self._length - 1

    def select(self, index: int) -> None:
        """See Context.select."""
        length = self._kept_from + index + 1
        self._go_on(self._tokens[self._length : length], length)

    def _append(self, tokens: Sequence[int]) -> None:
        assert 0 < len(tokens) <= self.n_batch, "Bug: batch size"
        if self._closed:
            raise ClosedError("the context is closed")
        if self._cancelled:
            raise CancelledError("cancelled")
        if self.n_past + len(tokens) > self.n_ctx:
            raise ContextOverflowError(f"{self.n_past} + {len(tokens)} tokens do not fit in {self.n_ctx}")
        self._engine.on_append(tokens)
        self._tokens += tokens
        self.evaluated_tokens += len(tokens)

    def _go_on(self, tokens: Sequence[int], length: int) -> None:
        """Take note that the reply has been continued with some tokens, to a length of all."""
        if tuple(tokens) != (self._sampled,):
            # put into its mouth: the reply takes another course
            self._planned, self._is_continued = None, True
        self._forbidden = frozenset()
        self._length = length

    def rewind(self, n_tokens: int) -> None:
        """See Context.rewind."""
        del self._tokens[n_tokens:]
        self._length = n_tokens

    def start_sampling(self, config: SamplingConfig) -> None:
        """See Context.start_sampling."""
        self.sampling = config
        self._planned, self._is_continued = None, False

    def sample(self, constraint: TokenConstraint | None = None) -> int:
        """See Context.sample.

        The script is asked at the first token of a reply, and again, with the reply so far behind the prompt, when the
        caller put tokens into it or ruled one out. Then a thought is over: what stands behind it goes on.

        Under a constraint the script is skipped to its next allowed token. When none is left, the engine's `choose` says
        which of the allowed ones it is.
        """
        engine = self._engine
        if self._planned is None:
            text = engine.script(engine.text(self._tokens[: self._length]))
            if self._is_continued:
                text = text.rpartition("</think>")[2].lstrip("\n")
            self._planned = [*engine.tokenize(text), engine.end_token, _FIRST_MARKER]
        if self._forbidden:
            self._planned = [token for token in self._planned if token not in self._forbidden]
        if constraint is not None:
            first = next((i for i, token in enumerate(self._planned) if constraint.allows(token)), None)
            if first is None:
                bits = np.unpackbits(constraint.mask().astype("<u4").view(np.uint8), bitorder="little")
                self._sampled = engine.choose(np.flatnonzero(bits).tolist())
                return self._sampled
            del self._planned[:first]
        self._sampled = self._planned.pop(0) if self._planned else _FIRST_MARKER
        return self._sampled

    def forbid(self, tokens: Sequence[int]) -> None:
        """See Context.forbid."""
        self._forbidden = frozenset(tokens)
        self._planned, self._is_continued = None, True

    def logits(self) -> NDArray[np.float32]:
        """See Context.logits: as in score()."""
        row: NDArray[np.float32] = self._engine.score(self._tokens[: self._length][-1:])[0]
        return row

    def cancel(self) -> None:
        """See Context.cancel."""
        self._cancelled = True

    def clear_cancel(self) -> None:
        """See Context.clear_cancel."""
        self._cancelled = False

    def save_state(self) -> NDArray[np.uint8]:
        """See Context.save_state: the tokens themselves."""
        return np.array([self._engine.state_magic, *self._tokens], dtype="<i4").view(np.uint8)

    def load_state(self, data: Any, n_tokens: int) -> None:
        """See Context.load_state."""
        if self._closed:
            raise ClosedError("the context is closed")
        self._tokens, self._length = [], 0
        state = np.frombuffer(data, dtype=np.uint8)
        if len(state) != 4 * (n_tokens + 1) or state.view("<i4")[0] != self._engine.state_magic:
            raise FormatError("a saved state does not fit this context")
        if n_tokens > self.n_ctx:
            raise FormatError(f"a saved state holds {n_tokens} tokens, the context {self.n_ctx}")
        self._tokens = state.view("<i4")[1:].tolist()
        self._length = n_tokens

    def close(self) -> None:
        """See Context.close."""
        self._closed = True


class FakeEngine(Engine):
    """Answers with what `script(rendered prompt)` returns."""

    def __init__(
        self,
        script: Script | str,
        *,
        config: LoadConfig | None = None,
        chat_template: str = TEMPLATE,
        on_append: Callable[[Sequence[int]], Any] = lambda tokens: None,
        pooling: PoolingInfo | None = None,
        choose: Callable[[Sequence[int]], int] | None = None,
    ) -> None:
        """Make one.

        Args:
            script: The raw reply, markers included, or a function from the rendered prompt to it. Asked again, with the
                reply so far behind the prompt, when a thought is closed for it or an end token ruled out.
            config: n_ctx, n_batch, n_sessions and speculation are used.
            chat_template: Jinja source.
            on_append: Called before each evaluation with its tokens; may raise, to test faults.
            pooling: Makes it an embedding model or a reranker, see pooled().
            choose: Takes one of the tokens that a constraint allows, where the script has no such token left;
                None takes what ends JSON soonest, else the first.
        """
        self.script: Script = (lambda _: script) if isinstance(script, str) else script
        self.config = config or LoadConfig()
        self.on_append = on_append
        self.choose = choose or _ends_soonest
        self.contexts: list[FakeContext] = []
        self.end_token = _FIRST_MARKER + MARKERS.index("<|im_end|>")
        self.info = ModelInfo(
            path=None,
            engine="fake",
            architecture="fake",
            name="fake",
            chat_template=chat_template,
            special_texts={"eos_token": "<|im_end|>"},
            n_vocab=_FIRST_MARKER + len(MARKERS),
            n_params=0,
            n_ctx_train=self.config.n_ctx,
            weights_bytes=0,
            settings={
                "n_ctx": self.config.n_ctx,
                "prefix_cache": self.config.prefix_cache,
                "speculation": self.config.speculation,
            },
            pooling=pooling,
        )
        self.state_magic = 1

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """See Engine.tokenize."""
        tokens: list[int] = []
        i = 0
        while i < len(text):
            marker = next((m for m in MARKERS if parse_special and text.startswith(m, i)), None)
            tokens += (
                [_FIRST_MARKER + MARKERS.index(marker)]
                if marker
                else text[i].encode("utf-8", "surrogatepass")
            )
            i += len(marker) if marker else 1
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, markers included."""
        data = b"".join(
            MARKERS[t - _FIRST_MARKER].encode() if t >= _FIRST_MARKER else bytes([t]) for t in tokens
        )
        return data.decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """See Engine.token_bytes."""
        if token < _FIRST_MARKER:
            return bytes([token])
        index = token - _FIRST_MARKER
        return b"" if index < _CONTROL else MARKERS[index].encode()

    def is_end(self, token: int) -> bool:
        """See Engine.is_end."""
        return token in (self.end_token, _FIRST_MARKER)

    def new_context(self) -> FakeContext:
        """See Engine.new_context."""
        context = FakeContext(self)
        self.contexts.append(context)
        return context

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Engine.score: every token is equally likely."""
        return np.zeros((len(tokens), self.info.n_vocab), dtype=np.float32)

    def pooled(
        self, texts: Sequence[Sequence[int]], *, is_cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """See Engine.pooled: how often each of the first tokens of the vocabulary occurs, over the number of tokens."""
        if self.info.pooling is None:
            return super().pooled(texts)
        for tokens in texts:
            if len(tokens) > self.config.n_ctx:
                raise ContextOverflowError(f"{len(tokens)} tokens do not fit in {self.config.n_ctx}")
            if is_cancelled():
                raise CancelledError("cancelled")
            self.on_append(tokens)
        size = self.info.pooling.size
        shares = [np.bincount(tokens, minlength=size)[:size] / len(tokens) for tokens in texts]
        return np.array(shares, dtype=np.float32).reshape(len(texts), size)

    def state_identity(self) -> dict[str, Any]:
        """See Engine.state_identity: two engines with the same `state_magic` take each other's states."""
        return {"engine": self.info.engine, "state_magic": self.state_magic}

    def close(self) -> None:
        """See Engine.close."""
        for context in self.contexts:
            context.close()
