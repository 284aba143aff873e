"""Which tokens may come next: grammars over the engine's vocabulary, by llguidance.

::

    Vocabulary          tables of an engine's tokens, made once per engine
      └── Constraint    one grammar and how far a text has come in it
            ├── AnswerGuide      a thought is free, the answer after it follows the grammar
            └── ToolCallGuide    free, but for the calls in it (call_guide.py)

The decode loop asks a guide before each token which constraint holds now, and tells it the token that came of it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_edge.chat.parser import THINK_OPEN, TOOL_CLOSE, TOOL_OPEN, ReplyParser
from qwen_edge.errors import ConfigError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from qwen_edge.engines.base import Engine

# Between the tokens of JSON; bounded, since a small model may never come back from a run of blanks.
JSON_BLANKS = r"[ \n]{0,20}"

# What stands between a thought and the answer.
_LINE_BREAKS = (b"\n", b"\n\n")


class StepConstraint(Protocol):
    """An engine's TokenConstraint that is also told what came."""

    def allows(self, token: int) -> bool:
        """See TokenConstraint.allows."""

    def mask(self) -> NDArray[np.uint32]:
        """See TokenConstraint.mask."""

    def accept(self, token: int) -> None:
        """Go on behind a token that is allowed."""


class Guide(Protocol):
    """Decides before each token of a reply which constraint holds."""

    @property
    def is_answering(self) -> bool:
        """Whether the answer has begun that it holds to a form: what looks like a tag is text of it from then on."""

    def constraint_for(self, parser: ReplyParser) -> StepConstraint | None:
        """Return the constraint of the next token, None when it is free.

        Args:
            parser: Has seen the reply so far.
        """


class Vocabulary:
    """llguidance's tables of an engine's tokens.

    Markers (`<think>`, `</tool_call>`) and control tokens are no text to it: a JSON string may contain the characters
    of a marker, never its token.

    Attributes:
        tokens: The bytes of each token, b"" for control tokens.
        ends: Tokens that end a reply.
        tables: llguidance's LLTokenizer.
        tag_endings: Tokens that may be the last of a tag that is spelled out.
        line_breaks: Tokens that are nothing but one or two.
    """

    def __init__(self, engine: Engine) -> None:
        """Read all tokens of an engine; about a second for Qwen's 151,936. vocabulary_of() remembers the result.

        Raises:
            MissingExtraError: llguidance is not installed.
            UnsupportedError: No token ends a reply.
        """
        llguidance = _llguidance()
        self.tokens = [engine.token_bytes(token) for token in range(engine.info.n_vocab)]
        special = [token for token, data in enumerate(self.tokens) if not data or _is_marker(data)]
        self.ends = tuple(token for token in special if engine.is_end(token))
        if not self.ends:
            raise UnsupportedError("the vocabulary has no token that ends a reply, so no grammar can end")
        self._markers = {self.tokens[token]: token for token in special if self.tokens[token]}
        self.tables = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_TokenList(engine, self.tokens, special, self.ends[0])),
            n_vocab=engine.info.n_vocab,
            eos_token=list(self.ends),
        )
        tags = (TOOL_CLOSE, TOOL_OPEN, THINK_OPEN)
        suffixes = tuple(tag[i:].encode() for tag in tags for i in range(1, len(tag)))
        self.tag_endings = [token for token, data in enumerate(self.tokens) if data.startswith(suffixes)]
        self.line_breaks = frozenset(i for i, data in enumerate(self.tokens) if data in _LINE_BREAKS)

    def marker(self, text: str) -> int | None:
        """Return the one token of a marker, None when the vocabulary spells it with several."""
        return self._markers.get(text.encode())


class _TokenList:
    """A vocabulary in the form that llguidance's TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, engine: Engine, tokens: Sequence[bytes], special: Sequence[int], end: int) -> None:
        named = list(tokens)
        for token in special:
            named[token] = named[token] or b"<|%d|>" % token
        self.tokens = named
        self.special_token_ids = special
        self.eos_token_id = end
        self._engine = weakref.ref(engine)  # the tables are remembered for as long as the engine lives

    def __call__(self, text: str) -> list[int]:
        engine = self._engine()
        return engine.tokenize(text, parse_special=False) if engine is not None else []


_vocabularies: weakref.WeakKeyDictionary[Engine, Vocabulary] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def vocabulary_of(engine: Engine) -> Vocabulary:
    """Return an engine's vocabulary, which is made once. Errors as in Vocabulary()."""
    with _lock:
        vocabulary = _vocabularies.get(engine)
        if vocabulary is None:
            vocabulary = _vocabularies[engine] = Vocabulary(engine)
        return vocabulary


def is_available() -> bool:
    """Return whether llguidance is installed."""
    try:
        _llguidance()
    except MissingExtraError:
        return False
    return True


# Grammars, in llguidance's own notation


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of the JSON texts that fit a schema. See llguidance for the keywords that it knows."""
    matcher = _llguidance().LLMatcher
    return str(matcher.grammar_from_json_schema(dict(schema), overrides={"whitespace_pattern": JSON_BLANKS}))


def regex_grammar(pattern: str) -> str:
    """Return the grammar of the texts that match a regular expression as a whole (Rust's dialect: no look-around)."""
    return str(_llguidance().LLMatcher.grammar_from_regex(pattern))


def choice_grammar(choices: Sequence[str]) -> str:
    """Return the grammar of some texts.

    Raises:
        ConfigError: There are none, or one is no text or empty.
    """
    if isinstance(choices, str) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise ConfigError(f"choice must be a list of texts, at least one and none empty (not {choices!r})")
    # As code points: what a regular expression or a grammar would read as its own notation is text here.
    return regex_grammar("|".join("".join(f"\\x{{{ord(c):x}}}" for c in choice) for choice in choices))


def lark_grammar(source: str) -> str:
    """Return a grammar written in llguidance's dialect of Lark; its first rule is `start`."""
    return str(_llguidance().LLMatcher.grammar_from_lark(source))


class Constraint:
    """A grammar, and the place in it that a text has come to. End tokens are allowed where the grammar may end."""

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        """Compile a grammar and begin.

        Args:
            vocabulary: Of the engine that samples.
            grammar: From one of the functions above.

        Raises:
            ConfigError: It is not well formed, or a schema uses what llguidance does not know.
        """
        self.vocabulary = vocabulary
        self._matcher = _llguidance().LLMatcher(vocabulary.tables, grammar, log_level=0)
        if self._matcher.is_error():
            raise ConfigError(f"no constraint can be made of this: {self._matcher.get_error()}")
        self._words = np.zeros((len(vocabulary.tokens) + 31) // 32, dtype=np.uint32)

    def copy(self) -> Constraint:
        """Return another at the same place, which goes its own way; far cheaper than compiling again."""
        twin = Constraint.__new__(Constraint)
        twin.vocabulary = self.vocabulary
        twin._matcher = self._matcher.deep_copy()
        twin._words = np.zeros_like(self._words)
        return twin

    @property
    def may_end(self) -> bool:
        """Whether the text so far is a whole one."""
        return bool(self._matcher.is_accepting())

    def allows(self, token: int) -> bool:
        """See TokenConstraint.allows."""
        if token in self.vocabulary.ends:
            return self.may_end
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self) -> NDArray[np.uint32]:
        """See TokenConstraint.mask."""
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        return words

    def accept(self, token: int) -> None:
        """Go on behind a token that is allowed."""
        if token not in self.vocabulary.ends:
            self._matcher.consume_token(token)
            self._check()

    def accept_text(self, text: str) -> bool:
        """Go on behind a text; return whether it is allowed. When it is not, the constraint is of no more use."""
        tokens = self.vocabulary.tables.greedy_tokenize(text)
        return bool(
            self._matcher.validate_tokens(tokens) == len(tokens) and self._matcher.consume_tokens(tokens)
        )

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UnsupportedError(f"the constraint cannot go on: {self._matcher.get_error()}")


class AnswerGuide:
    """The answer follows a grammar; a thought before it is free.

    Tags that the answer itself contains, in a JSON string say, are part of it: `text` is the answer as it was written.
    """

    def __init__(self, constraint: Constraint, *, may_think: bool) -> None:
        """Begin a reply.

        Args:
            constraint: Of the answer, at its beginning.
            may_think: The model may open a thought first.
        """
        self._constraint = constraint
        self._vocabulary = constraint.vocabulary
        think = self._vocabulary.marker(THINK_OPEN)
        self._free = frozenset((think,)) if may_think and think is not None else frozenset()
        self._answer: bytearray | None = None

    @property
    def text(self) -> str:
        """The answer so far; a character that is not whole yet is left out."""
        return bytes(self._answer or b"").decode("utf-8", "ignore")

    @property
    def is_whole(self) -> bool:
        """Whether the answer so far is one that the grammar takes."""
        return self._answer is not None and self._constraint.may_end

    @property
    def is_answering(self) -> bool:
        """See Guide.is_answering."""
        return self._answer is not None

    def constraint_for(self, parser: ReplyParser) -> StepConstraint | None:
        """See Guide.constraint_for."""
        if self._answer is None and parser.state == "thinking":
            self._free = self._vocabulary.line_breaks  # models put an empty line between thought and answer
            return None
        return self

    def allows(self, token: int) -> bool:
        """See TokenConstraint.allows."""
        return token in self._free or self._constraint.allows(token)

    def mask(self) -> NDArray[np.uint32]:
        """See TokenConstraint.mask."""
        words = self._constraint.mask()
        for token in self._free:
            words[token >> 5] |= np.uint32(1 << (token & 31))
        return words

    def accept(self, token: int) -> None:
        """Go on behind a token that is allowed."""
        free, self._free = self._free, frozenset()
        if token in free:
            return
        self._constraint.accept(token)
        self._answer = (self._answer or bytearray()) + self._vocabulary.tokens[token]


def _is_marker(data: bytes) -> bool:
    """Return whether a token is a tag. Qwen's splitting rule never joins `<`, letters and `>` into an ordinary one."""
    return data[:1] == b"<" and data[-1:] == b">" and any(chr(byte).isalpha() for byte in data)


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError("llguidance", "typed", "constrained decoding") from error
    return llguidance
