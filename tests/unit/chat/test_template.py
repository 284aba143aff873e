from __future__ import annotations

from pathlib import Path

import pytest

from qwen_edge.chat.template import CHATML, ChatTemplate, ThinkingSupport
from qwen_edge.errors import TemplateError
from qwen_edge.types import Message, ToolCall

QWEN3 = (Path(__file__).parents[3] / "examples/tiny-qwen3/chat_template.jinja").read_text()
TOOL = {
    "type": "function",
    "function": {"name": "wetter", "description": "Böen < 3 & Regen", "parameters": {}},
}


def test_qwen3_conversation() -> None:
    prompt = ChatTemplate(QWEN3).render(
        [
            Message("system", "Be brief."),
            Message("user", "Hi"),
            Message("assistant", "Hello.", thinking="old thought"),
            Message("user", "Weather?"),
            Message("assistant", "", "I call it.", (ToolCall("wetter", {"ort": "Köln"}),)),
            Message("tool", '{"t": 3}'),
        ],
        tools=[TOOL],
    )
    assert "old thought" not in prompt
    assert "<think>\nI call it.\n</think>" in prompt
    assert '<tool_call>\n{"name": "wetter", "arguments": {"ort": "Köln"}}\n</tool_call>' in prompt
    assert '<tool_response>\n{"t": 3}\n</tool_response>' in prompt
    assert "Böen < 3 & Regen" in prompt  # neither HTML nor ASCII escapes
    assert prompt.endswith("<|im_start|>assistant\n")


def test_thinking_switch() -> None:
    template = ChatTemplate(QWEN3)
    assert template.thinking is ThinkingSupport.SWITCHED
    off = template.render([Message("user", "Hi")], enable_thinking=False)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_models_that_only_think_or_never_do() -> None:
    assert ChatTemplate("").thinking is ThinkingSupport.NEVER
    assert (
        ChatTemplate(CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}").thinking
        is ThinkingSupport.ALWAYS
    )


def test_no_template_is_chatml() -> None:
    assert (
        ChatTemplate("").render([Message("user", "Hi")])
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ messages.append(1) }}",
    ],
)
def test_what_does_not_render_is_our_error(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source).render([Message("user", "Hi")])


def test_what_does_not_compile_names_the_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        ChatTemplate("x\n{% if %}")


def test_loop_controls_and_generation_markers() -> None:
    source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(source).render([Message("user", "a"), Message("user", "b")]) == "b"
