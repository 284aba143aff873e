"""ReplyParser once more: slow, on the whole text, from what the markup means. Nothing is held back, nothing is undone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from qwen_edge.types import ToolCall


@dataclass(frozen=True)
class Parsed:
    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class Segment:
    kind: str  # "text", "thinking" or "tool"
    body: str  # without its tags
    is_closed: bool = True


def parse_whole(raw: str, *, starts_thinking: bool = False, tool_names: tuple[str, ...] = ()) -> Parsed:
    segments = split(raw, starts_thinking)
    thoughts = [segment.body for segment in segments if segment.kind == "thinking"]
    texts: list[str] = []
    calls: list[ToolCall] = []
    may_be_bare = bool(tool_names)  # only the first words of an answer can be calls without tags
    for position, segment in enumerate(segments):
        if segment.kind == "text":
            comes_next = segments[position + 1].kind if position + 1 < len(segments) else ""
            if may_be_bare and not segment.body.strip() and comes_next == "thinking":
                continue
            bare = bare_calls(segment.body, tool_names) if may_be_bare else []
            calls += bare
            texts += [] if bare else [segment.body]
            may_be_bare = may_be_bare and not segment.body
        elif segment.kind == "tool":
            may_be_bare = False
            call = one_call(segment.body)
            calls += [call] if call else []
            as_written = "<tool_call>" + segment.body + ("</tool_call>" if segment.is_closed else "")
            texts += [] if call else [as_written]
    return Parsed(joined(texts), joined(thoughts), tuple(calls))


def joined(parts: list[str]) -> str:
    """Newlines round a part belong to the markup; each part begins on a line of its own."""
    stripped = [part.strip("\n") for part in parts]
    return "\n".join(part for part in stripped if part)


def split(raw: str, starts_thinking: bool) -> list[Segment]:
    segments = []
    rest = raw
    if starts_thinking:
        body, tag, rest = rest.partition("</think>")
        segments.append(Segment("thinking", body, bool(tag)))
    while rest:
        body, opening, rest = partition_at_first(rest, "<think>", "<tool_call>")
        is_silent = not any(s.kind == "tool" or (s.kind == "text" and s.body.strip()) for s in segments)
        segments.append(Segment("text", without_leading_closes(body) if is_silent else body))
        if opening == "<think>":
            body, tag, rest = rest.partition("</think>")
            segments.append(Segment("thinking", body, bool(tag)))
        elif opening:
            body, tag, rest = rest.partition("</tool_call>")
            segments.append(Segment("tool", body, bool(tag)))
    return segments


def partition_at_first(text: str, *tags: str) -> tuple[str, str, str]:
    found = re.search("|".join(tags), text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def without_leading_closes(text: str) -> str:
    """A closing tag before the first word of an answer is dropped; the blanks round it stay."""
    blanks = ""
    while True:
        before, tag, after = text.partition("</think>")
        if not tag or before.strip():
            return blanks + text
        blanks, text = blanks + before, after


def one_call(body: str) -> ToolCall | None:
    data = parsed_json(body)
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or data["name"] == "":
        return None
    arguments = data["arguments"] if "arguments" in data else data.get("parameters")
    if isinstance(arguments, str):
        arguments = parsed_json(arguments) if arguments.strip() else {}
        if arguments is None and data.get("arguments", data.get("parameters")).strip() != "null":
            return None
    if arguments is None:
        arguments = {}
    return ToolCall(data["name"], arguments) if isinstance(arguments, dict) else None


def parsed_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def bare_calls(text: str, names: tuple[str, ...]) -> list[ToolCall]:
    """The calls that a text is made of, all of tools on offer; a fence round them is allowed."""
    text = text.strip()
    if text.startswith("```"):
        text = text[3:]
        text = text[4:] if text.startswith("json") else text
        text = text[:-3] if text.endswith("```") else text
        text = text.strip()
    calls = []
    while text:
        # The shortest beginning that is JSON and ends in a brace is the first object.
        ends = [place.end() for place in re.finditer("}", text)]
        call = next((found for end in ends if (found := one_call(text[:end]))), None)
        first = next((end for end in ends if parsed_json(text[:end]) is not None), 0)
        if call is None or not first or one_call(text[:first]) != call or call.name not in names:
            return []
        calls.append(call)
        text = text[first:].lstrip()
    return calls
