"""Chat templates: Jinja source from the model file, rendered in a sandbox."""

from __future__ import annotations

import datetime
import functools
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import jinja2

from qwen_edge.chat.parser import THINK_OPEN
from qwen_edge.chat.template_sandbox import MeteredEnvironment
from qwen_edge.errors import TemplateError
from qwen_edge.types import Message

# Used when a file has no template of its own: the ChatML that Qwen's base models were trained with.
# Source: https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_HINT = (
    'The template is part of the model file. Load with chat_template="chatml" (qwen-edge: --chat-template chatml) to chat '
    "without it."
)
_MAX_REASON_CHARS = 500
_MAX_DATE_CHARS = 200


class ThinkingSupport(Enum):
    """What a model can do about thinking, as its template tells."""

    NEVER = "never"
    SWITCHED = "switched"
    ALWAYS = "always"


class ChatTemplate:
    """A compiled chat template.

    The dialect is that of Hugging Face's `apply_chat_template`: trimmed blocks, loop controls, `tojson` that
    keeps non-ASCII text, `raise_exception`, `strftime_now`, `generation` blocks. A template is a stranger's program: it
    reaches no file, and what it may do is counted (template_limits.py).
    """

    def __init__(
        self, source: str, special_texts: Mapping[str, str] | None = None, *, path: Path | None = None
    ) -> None:
        """Compile a template.

        Args:
            source: Jinja source; "" takes ChatML.
            special_texts: `bos_token`, `eos_token` and the like, as the template may use them.
            path: The file that it comes from, for messages.

        Raises:
            TemplateError: It does not compile.
        """
        self.source = source or CHATML
        self._name = f"the chat template of {path}" if path else "the chat template"
        self._special_texts = dict(special_texts or {})
        self._environment = MeteredEnvironment(
            {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        )
        # The environment counts one rendering at a time; sessions of one model share the template.
        self._lock = threading.Lock()
        try:
            self._template = self._environment.load(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"{self._name} does not compile: {_shown(error.message)} (line {error.lineno})",
                hint=_HINT,
            ) from error
        # Numbers and nesting that Jinja's lexer and parser, or Python's compiler, refuse.
        except (jinja2.TemplateError, ValueError, RecursionError, SyntaxError) as error:
            raise TemplateError(f"{self._name} does not compile: {_shown(error)}", hint=_HINT) from error

    @functools.cached_property
    def thinking(self) -> ThinkingSupport:
        """What the model can do about thinking."""
        if "enable_thinking" in self.source:
            return ThinkingSupport.SWITCHED
        try:
            prompt = self.render([Message("user", "?")])
        except TemplateError:
            return ThinkingSupport.NEVER
        return ThinkingSupport.ALWAYS if opens_thought(prompt) else ThinkingSupport.NEVER

    @property
    def takes_tools(self) -> bool:
        """Whether the template does anything with tools."""
        return "tools" in self.source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the text that the model reads.

        Args:
            messages: The conversation.
            tools: JSON schemas in OpenAI's form.
            enable_thinking: Value of the template's switch; None leaves it undefined.
            add_generation_prompt: Open the assistant's turn at the end.

        Raises:
            TemplateError: The template refuses the conversation or fails.
        """
        variables: dict[str, Any] = {
            **self._special_texts,
            "messages": [message.to_template() for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) or None,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        try:
            with self._lock:
                self._environment.meter.start(variables)
                return self._template.render(variables)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            AssertionError,
            RuntimeError,
        ) as error:
            raise TemplateError(
                f"{self._name} cannot render this conversation: {_shown(error)}", hint=_HINT
            ) from error


def opens_thought(prompt: str) -> bool:
    """Return whether a rendered prompt ends inside a thought, as templates of models that only think do."""
    return prompt.rstrip().endswith(THINK_OPEN)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_DATE_CHARS:
        raise ValueError(f"a form of a date has more than {_MAX_DATE_CHARS} characters")
    return datetime.datetime.now().strftime(form)


def _shown(reason: object) -> str:
    """Return what a template or Jinja says as one line that is safe to print: the text may be a stranger's."""
    text = " ".join(str(reason)[:_MAX_REASON_CHARS].split())
    return "".join(char for char in text if char.isprintable())
