"""Fixed conversations whose rendering tells whether a chat template does on a device what it did where it was bundled."""

from __future__ import annotations

import hashlib
from typing import Any

from qwen_edge.chat.template import ChatTemplate
from qwen_edge.errors import TemplateError
from qwen_edge.types import Message

_CONVERSATIONS = (
    (Message("user", "Hi"),),
    (
        Message("system", "You are brief."),
        Message("user", "Wie heißt die Hauptstadt von Griechenland? 你好 🙂"),
        Message("assistant", "<think>\nGreece.\n</think>\n\nAthens."),
        Message("user", 'And "of" {{ Italy }}?\n'),
    ),
)
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def golden_digest(template: ChatTemplate) -> str | None:
    """Return the SHA-256 of all that a template makes of the conversations; None where it writes today's date.

    With and without a tool, thinking switched on, off and left alone. What a template refuses counts as refused.
    """
    if "strftime_now" in template.source:
        return None
    digest = hashlib.sha256()
    for messages in _CONVERSATIONS:
        for tools in ((), (_TOOL,)):
            for enable_thinking in (None, True, False):
                try:
                    text = template.render(messages, tools=tools, enable_thinking=enable_thinking)
                except TemplateError:
                    text = "refused"
                digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()
