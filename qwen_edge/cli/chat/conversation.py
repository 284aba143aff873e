"""A conversation that a person has: the session, what was chosen for its answers, and what it has cost."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen_edge import tool_loop
from qwen_edge.chat.template import ThinkingSupport
from qwen_edge.chat.thinking import plan_thinking, soft_switch
from qwen_edge.chat.tools import error_text
from qwen_edge.cli.chat.screen import Screen, shortened
from qwen_edge.cli.chat.tool_file import load_tools
from qwen_edge.cli.options import GenerationOptions
from qwen_edge.cli.stream import ctrl_c_cancels, tell, unseen_keys
from qwen_edge.config import ThinkingLike, thinking_config
from qwen_edge.errors import ConfigError, ContextOverflowError, UnsupportedError
from qwen_edge.history import turn_starts
from qwen_edge.model import Model
from qwen_edge.session import Session
from qwen_edge.types import Message, Reply, ToolCall

_MAX_ROUNDS = 5
_SHOWN_CHARACTERS = 60
# From this share of the context on the person is told, while there is room for a turn or two.
_NEARLY_FULL = 0.85


class Conversation:
    """What the commands of a chat act on.

    Attributes:
        session: The session; another one after tools or a saved session were loaded.
        tools_file: Where its functions come from; None without tools.
        thinking: How the next turns think: the person's command, else the option.
        last: The last answer; None before it and after one that failed.
        n_answers: Answers so far, those after a tool's result counted too.
        generated_tokens: All of theirs.
        decode_s: Seconds of decoding, all of theirs.
        is_over: The person wants to leave.
    """

    def __init__(self, model: Model, session: Session, screen: Screen, options: GenerationOptions) -> None:
        self.model = model
        self.session = session
        self.tools_file: Path | None = None
        self.thinking: ThinkingLike | None = None
        self.last: Reply | None = None
        self.n_answers = self.generated_tokens = 0
        self.decode_s = 0.0
        self.is_over = False
        self._screen = screen
        self._options = options
        self._has_warned_full = False
        self.set_thinking(options.thinking)

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return int(self.model.info.settings["n_ctx"])

    def used_tokens(self) -> int:
        """Return how many tokens the conversation takes, as the next turn will find it."""
        if not self.session.messages:
            return 0
        text = self.model.template.render(
            self.session.messages, tools=self.session.tools, add_generation_prompt=False
        )
        return len(self.model.engine.tokenize(text))

    def say(self, text: str) -> None:
        """Say something and show the answer; the model's calls are made.

        Raises:
            ContextOverflowError: It does not fit; the conversation is as before.
            QwenEdgeError: As Session.stream().
            KeyboardInterrupt: Ctrl-C; what was generated until then stays.
        """
        self._tell_switch(text)
        self._answer([Message("user", text)])
        if (warning := self._fullness_warning()) is not None:
            tell(warning)

    def retry(self) -> None:
        """Have the last turn answered again, from the person's message on.

        Raises:
            ConfigError: There is none.
        """
        removed = list(self.undo())
        question = removed[:1]
        tell(f"again: {shortened(question[0].content, _SHOWN_CHARACTERS)}", is_dim=True)
        n_before = len(self.session.messages)
        try:
            self._answer(question)
        finally:
            if len(self.session.messages) == n_before:  # no answer came: the old one stays
                self.session.messages += removed

    def undo(self) -> tuple[Message, ...]:
        """Take the last turn out and return it.

        Raises:
            ConfigError: There is none.
        """
        if not turn_starts(self.session.messages):
            raise ConfigError("nothing was said yet that could be taken back or answered again")
        self.last = None
        return self.session.undo()

    def restart(self) -> None:
        """Forget what was said; the system message and the tools stay."""
        system = self.session.system
        self.session.messages.clear()
        self.session.system = system
        self.last = None

    def set_thinking(self, thinking: ThinkingLike | None) -> None:
        """Choose how the next turns think.

        Raises:
            UnsupportedError: The model cannot.
        """
        template = self.model.template
        try:
            plan_thinking(thinking_config(thinking), template.thinking, [], model_name=self.model.info.name)
        except UnsupportedError as error:
            if template.thinking is ThinkingSupport.ALWAYS:
                raise UnsupportedError(
                    error.message, hint="A budget holds: /think 0 (--thinking 0) closes its thought at once."
                ) from None
            raise UnsupportedError(error.message) from None
        self.thinking = thinking

    def set_tools(self, path: Path | None) -> None:
        """Offer the functions of a file to the model, or none; what was said stays.

        Raises:
            ToolError, ConfigError, UnsupportedError: As load_tools() and Model.session(); the tools are as before.
        """
        functions: Sequence[Callable[..., Any]] = load_tools(path) if path else ()
        session = self.model.session(tools=functions)
        session.messages[:] = self.session.messages
        self.take_session(session)
        self.tools_file = path

    def take_session(self, session: Session) -> None:
        """Go on with another session."""
        self.session.close()
        self.session = session
        self.last = None

    def _answer(self, added: list[Message]) -> None:
        before = list(self.session.messages)
        try:
            for _ in range(_MAX_ROUNDS + 1):
                reply = self._reply(added)
                if not self._makes_calls(reply):
                    break
                added = [self._called(call) for call in reply.tool_calls]
            else:
                self._leave_calls(f"not called: {_MAX_ROUNDS} rounds of calls are enough")
                tell(f"(the model asks for more calls after {_MAX_ROUNDS} rounds: they are not made)")
        except ContextOverflowError:
            self.session.messages[:] = before
            raise
        except KeyboardInterrupt:
            self._leave_calls("interrupted by the user")
            raise
        self._screen.answered(reply)

    def _reply(self, added: list[Message]) -> Reply:
        sampling = self._options.sampling(self.session.recommended_sampling(self.thinking, added))
        stream = self.session.stream(
            added, thinking=self.thinking, max_tokens=self._options.max_tokens, sampling=sampling
        )
        self.last = None
        try:
            with ctrl_c_cancels(self.session), unseen_keys():
                self._screen.stream(stream, makes_calls=bool(self.session.functions))
        finally:
            stream.close()
        self.last = stream.reply
        self.n_answers += 1
        self.generated_tokens += stream.reply.stats.generated_tokens
        self.decode_s += stream.reply.stats.decode_s
        return stream.reply

    def _makes_calls(self, reply: Reply) -> bool:
        return bool(reply.tool_calls and self.session.functions) and reply.finish_reason != "cancelled"

    def _called(self, call: ToolCall) -> Message:
        self._screen.calling(call)
        # What a tool prints is no part of the answer.
        with contextlib.redirect_stdout(sys.stderr):
            result = tool_loop.answer(self.session, call)
        self._screen.called(call, result)
        return result

    def _leave_calls(self, reason: str) -> None:
        """Answer the calls at the end of the conversation, which nobody makes any more."""
        messages = self.session.messages
        if messages and self.session.functions:
            messages += [Message("tool", error_text(reason)) for _ in messages[-1].tool_calls]

    def _tell_switch(self, text: str) -> None:
        """Say what a `/think` or `/no_think` inside a message does."""
        switch = soft_switch([Message("user", text)])
        if switch is None:
            return
        word = "/think" if switch == "on" else "/no_think"
        if self.model.template.thinking is not ThinkingSupport.SWITCHED:
            tell(f"({word} in a message is no switch for this model: it reads the word)")
            return
        mode = thinking_config(self.thinking).mode
        if mode == "auto":
            tell(f"({word} in a message holds until a later message says otherwise)")
        elif mode != switch:
            tell(
                f"({word} in a message changes nothing while thinking is set to {mode}: /think auto lets it)"
            )

    def _fullness_warning(self) -> str | None:
        """Return what to say about a context that fills up, once for each time that it does."""
        used_tokens = self.used_tokens()
        is_full = used_tokens >= _NEARLY_FULL * self.n_ctx
        if not is_full or self._has_warned_full:
            self._has_warned_full = is_full
            return None
        self._has_warned_full = True
        return (
            f"(the context is nearly full: {used_tokens} of {self.n_ctx} tokens. /new begins again, /undo takes the last"
            " turn out, --n-ctx gives more room)"
        )
