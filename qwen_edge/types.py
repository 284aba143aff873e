"""What goes in and comes out of a conversation: messages, chunks, replies and their measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ChunkKind = Literal["text", "thinking", "tool_call"]
FinishReason = Literal["stop", "length", "tool_calls", "thinking_budget", "loop", "cancelled"]
ThoughtCut = Literal["budget", "reserve", "loop", "end"]
SpeculationUse = Literal["off", "on", "switched_off"]
PrefixCacheUse = Literal["off", "short", "memory", "hit", "miss"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for.

    Attributes:
        name: Name of the tool, as the model wrote it.
        arguments: Arguments by name, parsed from JSON.
        id: What a tool's result refers to in OpenAI's dictionaries; "" where nobody gave one. Two calls with
            different ids are equal otherwise.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the call as a JSON-ready dict."""
        return {"name": self.name, "arguments": self.arguments}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation.

    Attributes:
        role: Who speaks.
        content: What is said; for an assistant the answer without its thinking.
        thinking: The assistant's reasoning, "" when there was none.
        tool_calls: Calls that the assistant asked for.
        tool_call_id: Of a tool's result, the call that it answers; "" where nobody said so.
    """

    role: Role
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = field(default="", compare=False)

    def to_template(self) -> dict[str, Any]:
        """Return the dict that chat templates expect (Hugging Face's message format)."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": call.to_dict()} for call in self.tool_calls
            ]
        return message

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """Build a message from the common dict form; tool calls may be nested under "function"."""
        calls = []
        for item in data.get("tool_calls") or ():
            call = item.get("function", item)
            calls.append(ToolCall(call["name"], dict(call.get("arguments") or {})))
        return cls(
            role=data["role"],
            content=data.get("content") or "",
            thinking=data.get("reasoning_content") or data.get("thinking") or "",
            tool_calls=tuple(calls),
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a streamed reply.

    Attributes:
        kind: "text" and "thinking" carry `text`; "tool_call" carries `tool_call`, once it is complete.
        text: Whole characters, never part of one.
        tool_call: The call, for kind "tool_call".
    """

    kind: ChunkKind
    text: str = ""
    tool_call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely the model thought it, before penalties, temperature and cuts.

    Attributes:
        token: Its id.
        data: Its bytes, which may end inside a character; b"" for control tokens.
        logprob: Natural logarithm of its probability.
        top: The most likely tokens in its place, the likeliest first; as many as were asked for.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The bytes as text; what is no whole character shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")

    def to_dict(self) -> dict[str, Any]:
        """Return it as an entry of OpenAI's logprobs, JSON-ready."""
        entry: dict[str, Any] = {"token": self.text, "bytes": list(self.data), "logprob": self.logprob}
        return entry | ({"top_logprobs": [each.to_dict() for each in self.top]} if self.top else {})


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What one reply cost.

    Attributes:
        prompt_tokens: Length of the rendered conversation in tokens, cached ones included.
        cached_tokens: How many of them were already in the KV cache.
        generated_tokens: Tokens produced, thinking and end token included.
        thinking_tokens: How many of them were thinking, its closing tag included and its opening tag not.
        ttft_s: Seconds from the call to the first sampled token: template, tokenizing, prefill, sampling.
        prefill_s: Seconds spent evaluating the prompt_tokens - cached_tokens new prompt tokens.
        decode_s: Seconds from the first sampled token to the last.
        peak_memory_bytes: Largest resident size of the process so far.
        closing_tokens: Tokens that the engine put into the reply to close a thought. They are not in generated_tokens,
            but count for max_tokens and take time of decode_s.
        thought_cut: What ended the thought in the model's place: "budget" (its budget), "reserve" (the tokens kept for
            the answer), "loop" (it repeated itself), "end" (the model ended its reply while it still thought). None when
            the model closed the thought itself, or had none.
        prefix_cache: What the prefix cache on disk did: "hit" (a prefix was loaded), "miss" (it was evaluated, and is
            being stored), "memory" (the session's KV cache held it already), "short" (not worth keeping), "off" (or not asked).
        prefix_saved_s: For a hit the seconds that evaluating the prefix took when it was stored, minus those that
            loading it took; an estimate, and negative where the cache did not pay.
        proposed_tokens: Tokens that were evaluated ahead, because they were likely to come.
        accepted_tokens: How many of them came.
        speculation: "off", also where the engine cannot; "on"; or "switched_off", for a while, because it lost time.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    thinking_tokens: int
    ttft_s: float
    prefill_s: float
    decode_s: float
    peak_memory_bytes: int
    closing_tokens: int = 0
    thought_cut: ThoughtCut | None = None
    prefix_cache: PrefixCacheUse = "off"
    prefix_saved_s: float = 0.0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    speculation: SpeculationUse = "off"

    @property
    def answer_tokens(self) -> int:
        """Generated tokens that were no thinking: text, calls, an opening tag, the end token."""
        return self.generated_tokens - self.thinking_tokens

    @property
    def prefill_tokens_per_s(self) -> float:
        """New prompt tokens per second of prefill; 0.0 when all were cached."""
        new = self.prompt_tokens - self.cached_tokens
        return new / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode steps per second; the first token is prefill's and does not count. 0.0 for one token."""
        steps = self.generated_tokens - 1
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as a JSON-ready dict."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.generated_tokens,
            "thinking_tokens": self.thinking_tokens,
            "answer_tokens": self.answer_tokens,
            "closing_tokens": self.closing_tokens,
            "thought_cut": self.thought_cut,
            "ttft_s": round(self.ttft_s, 6),
            "prefill_tokens_per_s": round(self.prefill_tokens_per_s, 3),
            "decode_tokens_per_s": round(self.decode_tokens_per_s, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "prefix_cache": self.prefix_cache,
            "prefix_saved_s": round(self.prefix_saved_s, 6),
            "proposed_tokens": self.proposed_tokens,
            "accepted_tokens": self.accepted_tokens,
            "speculation": self.speculation,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    Attributes:
        text: The answer, without thinking and without tool-call markup.
        thinking: The reasoning, "" when there was none.
        tool_calls: Calls that the model asks for, in order.
        finish_reason: Why it ended; where several hold, the first of these:

            - "cancelled": by cancel(), Ctrl-C or leaving the stream early.
            - "length": max_tokens or the end of the context came first. (A thought leaves room for an answer; only a
              limit of a few tokens can end inside one.)
            - "loop": the answer repeated itself and was ended; or the model had nothing to say, also when asked once
              more, or would not stop thinking. The text may be empty.
            - "tool_calls": the model ended, and asks for the calls in tool_calls.
            - "thinking_budget": the thought was cut (stats.thought_cut says at what: "budget", "reserve" or "loop"), and the
              answer then came to its own end.
            - "stop": the model ended, with an answer.
        stats: What it cost.
        logprobs: One entry for each generated token, thinking and end token included; None unless asked for.
    """

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    stats: GenerationStats = field(repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether the model came to its own end with an answer or calls: stop, tool_calls or thinking_budget."""
        return self.finish_reason in ("stop", "tool_calls", "thinking_budget")

    @property
    def message(self) -> Message:
        """The reply as a message of the conversation."""
        return Message("assistant", self.text, self.thinking, self.tool_calls)

    def to_dict(self) -> dict[str, Any]:
        """Return the reply as a JSON-ready dict."""
        return {
            "text": self.text,
            "thinking": self.thinking,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_dict(),
        }

    def to_openai(self, *, model: str = "") -> dict[str, Any]:
        """Return the reply as OpenAI's chat.completion, JSON-ready; see qwen_edge.openai_format.

        Args:
            model: Name to state, `model.info.name` say.

        Example::

            reply = session.send([{"role": "user", "content": "Hi"}])
            print(reply.to_openai(model="qwen3-0.6b")["choices"][0]["message"]["content"])
        """
        from qwen_edge.openai_format import completion

        return completion(self, model=model)
