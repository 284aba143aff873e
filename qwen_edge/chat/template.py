"""Chat templates: Jinja source from the model file, rendered in a sandbox."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen_edge.chat.parser import THINK_OPEN
from qwen_edge.errors import TemplateError
from qwen_edge.types import Message

# Used when a file has no template of its own: the ChatML that Qwen's base models were trained with.
# Source: https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class ThinkingSupport(Enum):
    """What a model can do about thinking, as its template tells."""

    NEVER = "never"
    SWITCHED = "switched"
    ALWAYS = "always"


class ChatTemplate:
    """A compiled chat template.

    The dialect is that of Hugging Face's `apply_chat_template`: trimmed blocks, loop controls, `tojson` that
    keeps non-ASCII text, `raise_exception`, `strftime_now`.
    """

    def __init__(self, source: str, special_texts: Mapping[str, str] | None = None) -> None:
        """Compile a template.

        Args:
            source: Jinja source; "" takes ChatML.
            special_texts: `bos_token`, `eos_token` and the like, as the template may use them.

        Raises:
            TemplateError: It does not compile.
        """
        self.source = source or CHATML
        self._special_texts = dict(special_texts or {})
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template does not compile: {error.message} (line {error.lineno})"
            ) from error

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
            return self._template.render(variables)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
        ) as error:
            raise TemplateError(f"the chat template cannot render this conversation: {error}") from error


def opens_thought(prompt: str) -> bool:
    """Return whether a rendered prompt ends inside a thought, as templates of models that only think do."""
    return prompt.rstrip().endswith(THINK_OPEN)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML and non-ASCII, which the models were not trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
