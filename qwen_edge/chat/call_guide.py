"""Tool calls held to the tools on offer, while the rest of a reply is free.

::

    <tool_call>            {"name": "get_weather", "arguments": {"city": "Vienna"}}   </tool_call>
               └── held from the tag on

    {"name": "get_weather" , "arguments": {"city": "Vienna"}}
                           └── held once a reply has named a tool: before that it may be JSON of any kind
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.chat.constraint import (
    JSON_BLANKS,
    Constraint,
    StepConstraint,
    Vocabulary,
    lark_grammar,
)
from qwen_edge.chat.parser import THINK_OPEN, TOOL_CLOSE, TOOL_OPEN, ReplyParser
from qwen_edge.errors import ConfigError

# Room for an indentation of four inside of the outer braces.
_CALL_BLANKS = r"[ \n]{1,8}"

CallKind = Literal["tagged", "bare"]

# What no JSON string of a call may spell: the parser would end the call there.
_TAGS: dict[CallKind, tuple[str, ...]] = {"tagged": (TOOL_CLOSE,), "bare": (TOOL_OPEN, THINK_OPEN)}


def call_grammar(
    tools: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, kind: CallKind = "tagged"
) -> str:
    """Return the grammar of a call of an offered tool.

    Args:
        tools: JSON schemas in OpenAI's form. Arguments that a schema does not name are not allowed, unless it says so.
        vocabulary: Tells whether the tag is a token.
        kind: "tagged" is what follows `<tool_call>`, with the closing tag; "bare" is the JSON alone.

    Raises:
        ConfigError: The text of a tool contains the closing tag.
    """
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    if kind == "tagged":
        tag = TOOL_CLOSE if vocabulary.marker(TOOL_CLOSE) is not None else json.dumps(TOOL_CLOSE)
        lines = [f"start: ws? ({calls}) ws? {tag}"]
    else:
        lines = [f"start: ({calls}) ws?"]
    lines.append(f"ws: /{_CALL_BLANKS}/")
    for i, tool in enumerate(tools):
        function = tool["function"]
        if TOOL_CLOSE in json.dumps(function, ensure_ascii=False):
            raise ConfigError(
                f"the schema of tool {function['name']!r} contains {TOOL_CLOSE}, which ends a call"
            )
        schema = {"additionalProperties": False, "type": "object", **(function.get("parameters") or {})}
        schema["x-guidance"] = {"whitespace_pattern": JSON_BLANKS}
        name = json.dumps(json.dumps(function["name"], ensure_ascii=False), ensure_ascii=False)
        lines += [
            f'call_{i}: "{{" ws? "\\"name\\"" ws? ":" ws? {name} ws? "," ws? "\\"arguments\\"" ws? ":" ws? args_{i} ws? "}}"',
            f"args_{i}: %json {json.dumps(schema, ensure_ascii=False)}",
        ]
    return lark_grammar("\n".join(lines))


class CallForms:
    """The constraints of calls of some tools; each kind is compiled when it is first needed."""

    def __init__(self, tools: Sequence[Mapping[str, Any]], vocabulary: Callable[[], Vocabulary]) -> None:
        """Remember the tools.

        Args:
            tools: JSON schemas in OpenAI's form.
            vocabulary: Returns that of the engine; not asked before a call begins.
        """
        self._tools = tools
        self._vocabulary = vocabulary
        self._compiled: dict[CallKind, Constraint] = {}

    def begin(self, kind: CallKind) -> CallConstraint:
        """Return the constraint of a call at its beginning. Errors as in call_grammar() and Constraint()."""
        if kind not in self._compiled:
            vocabulary = self._vocabulary()
            self._compiled[kind] = Constraint(vocabulary, call_grammar(self._tools, vocabulary, kind))
        return CallConstraint(self._compiled[kind].copy(), _TAGS[kind])


class ToolCallGuide:
    """In a call only what makes it one of an offered tool is possible; the rest of the reply is free."""

    def __init__(self, forms: CallForms) -> None:
        """Begin a reply."""
        self._forms = forms
        self._kind: CallKind | None = None
        self._call: CallConstraint | None = None

    @property
    def is_answering(self) -> bool:
        """See Guide.is_answering: text is free here."""
        return False

    def constraint_for(self, parser: ReplyParser) -> StepConstraint | None:
        """See Guide.constraint_for."""
        bare = parser.open_bare_call
        kind: CallKind | None = "tagged" if parser.state == "tool" else "bare" if bare else None
        if kind != self._kind:
            self._kind = kind
            self._call = None if kind is None else self._begun(kind, bare or parser.open_call)
        return self._call

    def _begun(self, kind: CallKind, text: str) -> CallConstraint | None:
        """Return the constraint behind the text of a call so far: the name of a bare one, what came with a tag's end.

        None when no call can be made of it.
        """
        call = self._forms.begin(kind)
        return call if not text or call.accept_text(text) else None


class CallConstraint:
    """The constraint of a call, in which a JSON string cannot spell the tags at which the parser would end it."""

    def __init__(self, constraint: Constraint, tags: Sequence[str]) -> None:
        """Begin a call.

        Args:
            constraint: Of the call without regard to tags.
            tags: What no string may spell.
        """
        self._constraint = constraint
        self._vocabulary = constraint.vocabulary
        self._tags = [tag.encode() for tag in tags]
        self._tail = b""  # the end of the call so far, as long as the longest tag less one byte

    def allows(self, token: int) -> bool:
        """See TokenConstraint.allows."""
        return self._constraint.allows(token) and not self._closes_early(token)

    def mask(self) -> NDArray[np.uint32]:
        """See TokenConstraint.mask."""
        words = self._constraint.mask()
        if any(self._tail.endswith(tag[:i]) for tag in self._tags for i in range(1, len(tag))):
            for token in self._vocabulary.tag_endings:
                if words[token >> 5] >> (token & 31) & 1 and self._closes_early(token):
                    words[token >> 5] &= ~np.uint32(1 << (token & 31))
        return words

    def accept(self, token: int) -> None:
        """Go on behind a token that is allowed."""
        self._constraint.accept(token)
        self._remember(self._vocabulary.tokens[token])

    def accept_text(self, text: str) -> bool:
        """See Constraint.accept_text."""
        self._remember(text.encode())
        return self._constraint.accept_text(text)

    def _remember(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-(max(map(len, self._tags)) - 1) :]

    def _closes_early(self, token: int) -> bool:
        text = self._tail + self._vocabulary.tokens[token]
        if not any(tag in text for tag in self._tags):
            return False
        after = self._constraint.copy()
        after.accept(token)
        return not after.may_end
