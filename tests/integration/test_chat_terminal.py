"""`qwen-edge chat` in a terminal, key by key."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from terminal import Terminal

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP, TAB = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A", "\t"
PASTE, END_OF_PASTE = "\x1b[200~", "\x1b[201~"
COLOUR = {"TERM": "xterm-256color", "NO_COLOR": "", "CLICOLOR": "1"}

# A model that takes two seconds for the prompt and a twentieth for each letter, and counts for long; then it is "Done.".
SLOW_MODEL = """
import sys, time
from qwen_edge.cli.chat.conversation import Conversation
from qwen_edge.cli.chat.entry import open_reader, talk
from qwen_edge.cli.chat.screen import TextScreen
from qwen_edge.cli.options import GenerationOptions
from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.model import Model

def script(prompt):
    return "Done." if "assistant\\n0 1 2" in prompt else " ".join(str(number) for number in range(1000))

def evaluate(tokens):
    if len(tokens) > 1:
        print("(reading)", flush=True)
    time.sleep(0.05 if len(tokens) == 1 else 2)

engine = FakeEngine(script, on_append=evaluate)
options = GenerationOptions(LoadConfig(), None, None, None, None, None, None)
with Model(engine) as model:
    conversation = Conversation(model, model.session(), TextScreen(), options)
    talk(conversation, open_reader(keeps_history=False), is_interactive=True)
"""


def chat(path: Path, *options: str, env: dict[str, str] | None = None, stdout: int | None = None) -> Terminal:
    command = [sys.executable, "-m", "qwen_edge", "chat", str(path), "--threads", "1", "--temperature", "0"]
    return Terminal([*command, "--thinking", "off", *options], env=env or COLOUR, stdout=stdout)


def history_file() -> Path:
    return Path(os.environ["QWEN_EDGE_CACHE"]) / "history" / "chat"


def test_a_conversation_and_the_next_one_that_remembers_what_was_typed(tiny_bf16: Path) -> None:
    with chat(tiny_bf16) as terminal:
        terminal.wait_for("is ready")
        terminal.wait_for(">")
        terminal.type(f"Say Anna.{ENTER}")
        terminal.wait_for("\nAnna\n\n>")
        terminal.type(f"dropped{CTRL_C}")
        terminal.wait_for("Ctrl-D or /exit leaves)\n>")
        terminal.type(f"{PASTE}one\ntwo \\\nthree\n{END_OF_PASTE}{ENTER}")
        terminal.wait_for("\n\n>")
        terminal.type(f"four{ALT_ENTER}five{ENTER}")
        terminal.wait_for("\n\n>")
        terminal.type(f"six\\{ENTER}seven{ENTER}")
        terminal.wait_for("\n\n>")
        terminal.type("/hist")
        terminal.type(TAB)
        terminal.wait_for("/history")
        terminal.type(ENTER)
        for turn in (
            "you: Say Anna.",
            "you: one\n  two \\\n  three",
            "you: four\n  five",
            "you: six\n  seven",
        ):
            terminal.wait_for(turn)
        terminal.wait_for("\n\n>")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    assert "dropped" not in history_file().read_text()
    assert history_file().stat().st_mode & 0o777 == 0o600
    with chat(tiny_bf16) as terminal:
        terminal.wait_for("is ready")
        terminal.wait_for(">")
        terminal.type(UP + UP)
        terminal.wait_for("seven")
        terminal.type(f"{ENTER}/exit{ENTER}")
        assert terminal.exit_code() == 0


def test_a_history_that_cannot_be_kept_or_is_not_wanted(tiny_bf16: Path) -> None:
    with chat(tiny_bf16, "--no-history") as terminal:
        terminal.wait_for("is ready")
        terminal.wait_for(">")
        terminal.type(f"Say Anna.{ENTER}")
        terminal.wait_for("\nAnna\n\n>")
        terminal.type(f"/exit{ENTER}")
        assert terminal.exit_code() == 0
    assert not history_file().parent.exists()
    history_file().parent.write_text("")
    with chat(tiny_bf16) as terminal:
        terminal.wait_for("is not kept for the next time")
        terminal.wait_for("\n>")
        terminal.type(f"Say Anna.{ENTER}")
        terminal.wait_for("\nAnna\n\n>")
        terminal.type(f"{UP}{ENTER}")
        terminal.wait_for("\nAnna\n\n>")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    assert terminal.text.count("is not kept") == 1


def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on() -> None:
    with Terminal([sys.executable, "-c", SLOW_MODEL], env=COLOUR) as terminal:
        terminal.wait_for(">")
        terminal.type(f"Count.{ENTER}")
        terminal.wait_for("0 1 2")
        terminal.type("And now")
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)\n\n>")
        assert not {"^C", "And"} & set(terminal.text.split())  # what is typed does not get into the answer
        terminal.type(f"And now?{ENTER}")
        terminal.wait_for("Done.")
        terminal.type(f"/exit{ENTER}")
        assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("what", ["two at once", "while the prompt is read"])
def test_an_impatient_ctrl_c_is_one(what: str) -> None:
    with Terminal([sys.executable, "-c", SLOW_MODEL], env=COLOUR) as terminal:
        terminal.wait_for(">")
        terminal.type(f"Count.{ENTER}")
        terminal.wait_for("0 1 2" if what == "two at once" else "(reading)")
        terminal.type(CTRL_C + CTRL_C)
        terminal.wait_for("(stopped)\n\n>")
        terminal.type(f"/exit{ENTER}")
        assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.text


def test_a_dumb_terminal_gets_text_and_nothing_else(tiny_bf16: Path) -> None:
    with chat(tiny_bf16, "--thinking", "on", env={"TERM": "dumb"}) as terminal:
        terminal.wait_for(">")
        terminal.type("What is the capital\\\n")
        terminal.wait_for(". ")
        terminal.type("of Greece?\n")
        terminal.wait_for("Athens.\n\n>")
        terminal.type(f"half{CTRL_C}")
        terminal.wait_for("Ctrl-D or /exit leaves)\n>")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    assert "\x1b" not in terminal.output
    assert "thinking: " in terminal.output


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_without_colour_nothing_is_dimmed(tiny_bf16: Path, no_colour: str) -> None:
    with chat(tiny_bf16, "--thinking", "on", env={**COLOUR, "NO_COLOR": no_colour}) as terminal:
        terminal.wait_for(">")
        terminal.type(f"What is the capital of Greece?{ENTER}")
        terminal.wait_for("thinking: ")
        terminal.wait_for("\nAthens.\n\n>")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    assert ("\x1b[2m" in terminal.output) == (not no_colour)


def test_answers_can_go_to_a_file_while_a_person_types(tiny_bf16: Path, tmp_path: Path) -> None:
    with (tmp_path / "answers").open("w+b") as answers:
        with chat(tiny_bf16, "--format", "json", stdout=answers.fileno()) as terminal:
            terminal.wait_for(">")
            terminal.type(f"Say Anna.{ENTER}")
            terminal.wait_for("\n\n>")
            terminal.type(f"/stats{ENTER}")
            terminal.wait_for("memory:")
            terminal.wait_for("\n>")
            terminal.type(CTRL_D)
            assert terminal.exit_code() == 0
        answers.seek(0)
        assert [json.loads(line)["text"] for line in answers.read().splitlines()] == ["Anna"]
