r"""From the raw stream of a reply to text, thinking and tool calls.

::

    raw      <think>\\n  6 + 7 …  \\n</think>\\n\\n  It is 13.  <tool_call>\\n{"name": …}\\n</tool_call>
    state    └─────── thinking ───────────┘       text        └───────────── tool ────────────┘

Markup may arrive in any pieces; what could be the beginning of a tag is held back until it is decided.

Small models (Qwen2.5-Coder-0.5B among them) forget the tags and answer with the bare JSON of a call, fenced or not.
When tools are on offer, an answer that is nothing but calls of those tools is taken as what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Literal

from qwen_edge.types import Chunk, ChunkKind, ToolCall

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"

_FENCE = "```"
_NAMED = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')

State = Literal["text", "thinking", "tool"]

_LEADS_TO: dict[State, dict[str, State]] = {
    "text": {THINK_OPEN: "thinking", TOOL_OPEN: "tool", THINK_CLOSE: "text"},
    "thinking": {THINK_CLOSE: "text"},  # a call inside a thought is a thought, not a call
    "tool": {TOOL_CLOSE: "text"},
}


class ReplyParser:
    """Splits a streamed reply. Feed it text, then finish(); both return the chunks that became certain."""

    def __init__(self, *, starts_thinking: bool = False, tool_names: Collection[str] = ()) -> None:
        """Begin a reply.

        Args:
            starts_thinking: The prompt ended inside `<think>`, so that the reply begins in a thought.
            tool_names: Tools on offer. An answer that begins like a bare call of one is held back until its end.
        """
        self.state: State = "thinking" if starts_thinking else "text"
        self._pending = ""
        self._tool_text = ""
        self._at_start = True
        self._newlines = ""
        self._tool_names = frozenset(tool_names)
        self._undecided: str | None = "" if self._tool_names else None
        self._parts: dict[ChunkKind, list[str]] = {"text": [], "thinking": []}
        self._calls: list[ToolCall] = []

    @property
    def text(self) -> str:
        """The answer so far, without the newlines around it."""
        return "".join(self._parts["text"])

    @property
    def thinking(self) -> str:
        """The reasoning so far."""
        return "".join(self._parts["thinking"])

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The complete calls so far."""
        return tuple(self._calls)

    @property
    def has_answer(self) -> bool:
        """Whether anything but thoughts and blanks has come, held back or not."""
        held = "" if self.state == "thinking" else self._pending
        return self.state == "tool" or bool(held.strip()) or self._has_said_something()

    def _has_said_something(self) -> bool:
        return bool(self._calls or (self._undecided or "").strip() or self.text.strip())

    @property
    def open_call(self) -> str:
        """What has come of the call that is being written, "" outside of one."""
        return self._tool_text + self._pending if self.state == "tool" else ""

    @property
    def open_bare_call(self) -> str:
        """What has come of a call without tags that is being written, "" before it has named a tool on offer."""
        if self.state != "text" or self._undecided is None:
            return ""
        _, text = _leading_calls(self._undecided + self._pending, self._tool_names)
        return text if names_a_tool(text, self._tool_names) else ""

    def feed(self, piece: str) -> list[Chunk]:
        """Take the next piece of the stream."""
        chunks: list[Chunk] = []
        self._pending += piece
        while self._pending:
            tags = _LEADS_TO[self.state]
            position, tag = _first_tag(self._pending, tags)
            if tag:
                self._take(self._pending[:position], chunks)
                self._pending = self._pending[position + len(tag) :]
                if self.state == tags[tag]:
                    self._take_stray_close(chunks)
                else:
                    self._enter(tags[tag], chunks)
                continue
            safe = len(self._pending) - _held_back(self._pending, tags)
            self._take(self._pending[:safe], chunks)
            self._pending = self._pending[safe:]
            break
        return chunks

    def finish(self) -> list[Chunk]:
        """End the stream: whatever was held back is what it looks like."""
        chunks: list[Chunk] = []
        self._take(self._pending, chunks)
        self._pending = ""
        if self.state == "tool":
            self._end_call(chunks, closed=False)
            self.state = "text"
        elif self.state == "thinking":
            self._enter("text", chunks)
        self._decide(chunks)
        return chunks

    def _take_stray_close(self, chunks: list[Chunk]) -> None:
        """Take a closing tag outside of a thought: a word of the answer, but no answer begins with one.

        A model whose thought was closed for it may close it once more.
        """
        if self._has_said_something():
            self._take(THINK_CLOSE, chunks)

    def _enter(self, state: State, chunks: list[Chunk]) -> None:
        if self.state == "tool":
            self._end_call(chunks, closed=True)
        elif state == "tool" or (self._undecided or "").strip():
            self._decide(chunks)  # what comes next is no part of a bare call
        elif self._undecided:
            self._undecided = ""  # blanks before a thought
        self.state = state
        self._at_start, self._newlines = True, ""

    def _take(self, text: str, chunks: list[Chunk]) -> None:
        if self.state == "tool":
            self._tool_text += text
            return
        if self.state == "text" and self._undecided is not None:
            self._undecided += text
            if not _begins_like_a_call(self._undecided):
                self._decide(chunks)
            return
        # Newlines around a part belong to the markup; at its end they are held until more follows.
        text = self._newlines + text
        if self._at_start:
            text = text.lstrip("\n")
        body = text.rstrip("\n")
        self._newlines = text[len(body) :]
        if not body:
            return
        kind: ChunkKind = "thinking" if self.state == "thinking" else "text"
        if self._at_start and self._parts[kind]:
            body = "\n" + body  # text after a call, or a second thought, begins on a line of its own
        self._at_start = False
        self._parts[kind].append(body)
        chunks.append(Chunk(kind, body))

    def _decide(self, chunks: list[Chunk]) -> None:
        """End the doubt whether the answer is a bare call: it is one, or it is text from its beginning."""
        text, self._undecided = self._undecided, None
        if not text:
            return
        calls, rest = _leading_calls(text, self._tool_names)
        if rest or not calls:
            self._take(text, chunks)
            return
        for call in calls:
            self._calls.append(call)
            chunks.append(Chunk("tool_call", tool_call=call))

    def _end_call(self, chunks: list[Chunk], *, closed: bool) -> None:
        raw, self._tool_text = self._tool_text, ""
        call = parse_tool_call(raw)
        if call is not None:
            self._calls.append(call)
            chunks.append(Chunk("tool_call", tool_call=call))
            return
        # Not a call that anyone could make: it is shown as the model wrote it rather than lost.
        self.state = "text"
        self._at_start, self._newlines = True, ""
        self._take(TOOL_OPEN + raw + (TOOL_CLOSE if closed else ""), chunks)


def parse_tool_call(raw: str) -> ToolCall | None:
    """Return the call that `{"name": …, "arguments": {…}}` means, or None when it means none.

    Args:
        raw: What stood between the tags. Arguments may be an object, a string that holds one, or absent.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not data["name"]:
        return None
    arguments = data.get("arguments", data.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    return ToolCall(data["name"], arguments) if isinstance(arguments, dict) else None


def _without_fence(text: str) -> str:
    """Return a text without blanks before it, the ```json that may open it and the ``` that may close it."""
    text = text.lstrip()
    if not text.startswith(_FENCE):
        return text
    text = text.removeprefix(_FENCE).removeprefix("json").lstrip()
    return text.rstrip().removesuffix(_FENCE) if text.rstrip().endswith(_FENCE) else text


def _begins_like_a_call(text: str) -> bool:
    start = text.lstrip()
    return f"{_FENCE}json".startswith(start) or _without_fence(start)[:1] in ("", "{")


def names_a_tool(text: str, names: Collection[str]) -> bool:
    """Return whether a text, fenced or not, begins like the JSON of a call of one of some tools."""
    named = _NAMED.match(_without_fence(text))
    try:
        return named is not None and json.loads(named[1]) in names
    except ValueError:
        return False


def _leading_calls(text: str, names: Collection[str]) -> tuple[list[ToolCall], str]:
    """Return the calls of tools on offer that a text begins with, without its fence, and what comes after them."""
    text = _without_fence(text)
    calls = []
    while text:
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            break
        call = parse_tool_call(text[:end])
        if call is None or call.name not in names:
            break
        calls.append(call)
        text = text[end:].lstrip()
    return calls, text


def _first_tag(text: str, tags: dict[str, State]) -> tuple[int, str]:
    """Return position and tag of the first tag in a text, or (-1, "")."""
    found = [(text.find(tag), tag) for tag in tags if tag in text]
    return min(found) if found else (-1, "")


def _held_back(text: str, tags: dict[str, State]) -> int:
    """Return how many characters at the end could be the beginning of a tag."""
    longest = max(len(tag) for tag in tags) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in tags):
            return length
    return 0
