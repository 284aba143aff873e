"""Thinking with the tiny model: budgets, forbidden tokens, the cache behind a closed thought, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import Model, ThinkingConfig, load
from qwen_edge.bench.thinking_budget import main, measure_budget
from qwen_edge.chat.template import ChatTemplate, ThinkingSupport
from qwen_edge.config import GREEDY, SamplingConfig, ThinkingLike
from qwen_edge.session import Session

Lines = Callable[[str], list[dict[str, Any]]]
CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-qwen3"


@pytest.mark.parametrize("budget", [0, 1, 4, 8, 32])
def test_a_budget_holds_and_an_answer_follows(tiny_model: Model, eval_lines: Lines, budget: int) -> None:
    with tiny_model.session() as session:
        for line in eval_lines("chat.jsonl")[:12]:
            session.messages.clear()
            question = line["messages"][0]["content"]
            reply = session.send(question, thinking=budget, max_tokens=200, sampling=GREEDY)
            assert reply.stats.thinking_tokens <= budget
            assert reply.text or reply.tool_calls
            assert reply.finish_reason != "stop" or reply.stats.thought_cut is None
            if reply.stats.thought_cut == "budget":
                assert reply.thinking.endswith(ThinkingConfig().closing)


def test_a_closed_thought_is_read_as_if_the_model_had_closed_it(tiny_model: Model) -> None:
    """The answer after a cut is the one that the same text gives as a prompt."""
    question = "What is the capital of Greece?"
    with tiny_model.session() as session:
        reply = session.send(question, thinking=6, sampling=GREEDY)
        assert reply.finish_reason == "thinking_budget"
        asked = session._template.render(session.messages[:1], enable_thinking=True)
    prompt = f"{asked}<think>\n{reply.thinking}\n</think>\n\n"
    with tiny_model.session() as session:
        stream = session.stream_tokens(
            tiny_model.engine.tokenize(prompt), max_tokens=reply.stats.answer_tokens, sampling=GREEDY
        )
        assert "".join(chunk.text for chunk in stream) == reply.text


@pytest.mark.parametrize("thinking", [8, ThinkingConfig(mode="on", answer_tokens=40)])
def test_a_turn_after_a_cut_thought_answers_like_a_fresh_one(
    tiny_model: Model, thinking: ThinkingLike
) -> None:
    questions = ["What is 12 + 30?", "What is the capital of Peru?", "Compute 16 + 46."]
    with tiny_model.session() as session:
        for question in questions:
            reply = session.send(question, thinking=thinking, max_tokens=80, sampling=GREEDY)
            with tiny_model.session() as fresh:
                fresh.messages = session.messages[:-2]
                again = fresh.send(question, thinking=thinking, max_tokens=80, sampling=GREEDY)
            assert (again.text, again.thinking) == (reply.text, reply.thinking)


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingConfig(temperature=0.8, seed=3), SamplingConfig(top_k=0, top_p=1.0, seed=3)]
)
def test_a_forbidden_token_is_not_drawn(tiny_model: Model, sampling: SamplingConfig) -> None:
    context = tiny_model.engine.new_context()
    try:
        context.append(tiny_model.engine.tokenize("And the king said unto"))
        context.start_sampling(sampling)
        drawn: list[int] = []
        for _ in range(30):
            drawn.append(context.sample())
            context.forbid((drawn[-1],))
        assert len(set(drawn)) == 30
    finally:
        context.close()


def test_a_full_context_keeps_room_for_the_answer(tiny_path: Path) -> None:
    with load(tiny_path, n_ctx=64, n_threads=1, safe_kernels=False) as model, model.session() as session:
        reply = session.send("Compute 16 + 46. /think", sampling=GREEDY)
    assert reply.stats.thought_cut == "reserve"
    assert reply.text
    used = reply.stats.prompt_tokens + reply.stats.generated_tokens + reply.stats.closing_tokens
    assert used <= 64


def test_the_command_takes_a_budget(tiny_path: Path) -> None:
    command = [
        sys.executable, "-m", "qwen_edge", "run", str(tiny_path), "What is the capital of Greece?", "--thinking", "6",
        "--temperature", "0", "--threads", "1", "--n-ctx", "256", "--format", "json",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    assert reply["finish_reason"] == "thinking_budget"
    assert reply["stats"]["thinking_tokens"] == 6
    assert reply["stats"]["thought_cut"] == "budget"


def test_the_bench_measures_budgets(tiny_model: Model, tmp_path: Path, capsys: Any, tiny_path: Path) -> None:
    for name in ("chat.jsonl", "tools.jsonl"):
        lines = (CHECKPOINT / "eval" / name).read_text().splitlines(keepends=True)[:6]
        (tmp_path / name).write_text("".join(lines))
    free = measure_budget(tiny_model, tmp_path, None)
    assert (free.answered, free.complete, free.cut) == (1.0, 1.0, 0.0)
    assert (free.called, free.tool_answers) == (1.0, 1.0)
    assert (free.calls_opened, free.calls_parsed, free.calls_executed) == (6, 6, 6)
    tight = measure_budget(tiny_model, tmp_path, 4)
    assert tight.answered == 1.0
    assert tight.cut > 0
    assert tight.thinking_tokens < free.thinking_tokens
    with pytest.raises(SystemExit) as ended:
        main([str(tiny_path), "--budgets", "0,none", "--eval", str(tmp_path)])
    assert ended.value.code == 0
    assert "6/6/6" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([str(tiny_path), "--budgets", "few"])
    assert ended.value.code == 2


@pytest.mark.parametrize("budget", [0, 5, None])
def test_a_template_that_always_opens_a_thought(tiny_model: Model, budget: int | None) -> None:
    """As in the thinking-only models of 2507."""
    always = ChatTemplate(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert always.thinking is ThinkingSupport.ALWAYS
    with Session(tiny_model.engine, always) as session:
        reply = session.send("What is the capital of Greece?", thinking=budget, sampling=GREEDY)
    assert reply.text
    if budget is None:
        assert (reply.text, reply.finish_reason) == ("Athens.", "stop")
    else:
        assert (reply.stats.thinking_tokens, reply.finish_reason) == (budget, "thinking_budget")
    if budget == 0:
        # The closing makes the prompt that "off" makes of the template with a switch.
        assert (reply.text, reply.thinking) == ("Athens.", "")
