"""Typed output: an answer as an instance of a type, or as a text of a given form.

The model thinks freely first, if it does; the constraint begins with the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from qwen_edge.chat import constraint as constraints
from qwen_edge.chat.outline import outline
from qwen_edge.chat.partial_json import ABSENT, parse_partial
from qwen_edge.chat.schema import json_schema, parse
from qwen_edge.errors import ConfigError, OutputError
from qwen_edge.reply_options import ReplyOptions
from qwen_edge.types import Message, Reply

if TYPE_CHECKING:
    from qwen_edge.openai_format import Turn
    from qwen_edge.session import Session

_INSTRUCTION = "Answer with JSON of this form and nothing else:\n"
_SCHEMA_INSTRUCTION = "Answer with JSON of this schema and nothing else:\n"


def extract_stream(
    session: Session,
    turn: Turn,
    schema: Any = None,
    *,
    regex: str | None = None,
    choice: Sequence[str] | None = None,
    grammar: str | None = None,
    show_schema: bool = True,
    **options: Unpack[ReplyOptions],
) -> ExtractStream:
    """Begin an answer of a given form. See Session.extract_stream, whose arguments these are.

    Args:
        session: Takes the turn and the answer into its history.
        turn: What the user says.
        schema: A type or a JSON schema.
        regex: A regular expression.
        choice: Texts.
        grammar: A grammar in Lark's notation.
        show_schema: Add the form of the schema to the last message.
        **options: Of Session.send.
    """
    forms = {"schema": schema, "regex": regex, "choice": choice, "grammar": grammar}
    given = [name for name, form in forms.items() if form is not None]
    if len(given) != 1:
        raise ConfigError(
            f"one of schema, regex, choice and grammar must be given (not {' and '.join(given) or 'none'})"
        )
    if choice is not None:
        source = constraints.choice_grammar(choice)
    elif regex is not None:
        source = constraints.regex_grammar(regex)
    elif grammar is not None:
        source = constraints.lark_grammar(grammar)
    else:
        json_form = json_schema(schema)
        source = constraints.json_grammar(json_form)
        if show_schema:
            turn = with_schema(turn, json_form)
    vocabulary = constraints.vocabulary_of(session._engine)
    guide = constraints.AnswerGuide(
        constraints.Constraint(vocabulary, source), may_think=session.may_think(options.get("thinking"))
    )
    return ExtractStream(session.stream(turn, guide=guide, **options), guide, schema)


class ExtractStream:
    """An answer of a given form being generated: iterate for what there is of it so far, then read `.result`.

    With a schema each item is the JSON value so far, plain lists and dicts; otherwise the text so far.
    """

    def __init__(self, stream: Any, guide: constraints.AnswerGuide, schema: Any) -> None:
        self._stream = stream
        self._guide = guide
        self._schema = schema

    def __iter__(self) -> Iterator[Any]:
        seen = ABSENT
        for _ in self._stream:
            text = self._guide.text
            value = text if self._schema is None else parse_partial(text)
            if value is not ABSENT and value != seen:
                seen = value
                yield value

    def close(self) -> None:
        """End the reply here."""
        self._stream.close()

    @property
    def reply(self) -> Reply:
        """The whole answer with its thinking and stats.

        Raises:
            ConfigError: The stream has not ended yet.
        """
        reply: Reply = self._stream.reply
        return reply

    @property
    def result(self) -> Any:
        """The answer: an instance of the schema's type, the JSON value for a JSON schema, else the text.

        Raises:
            OutputError: It was cut off before it was whole, or the type itself refuses it.
            ConfigError: The stream has not ended yet.
        """
        finish, text = self.reply.finish_reason, self._guide.text
        if not self._guide.is_whole:
            raise OutputError(
                f"the answer ended before it was whole ({finish}): {text[-80:]!r}",
                hint="Allow more max_tokens, or a larger n_ctx." if finish == "length" else None,
                text=text,
            )
        if self._schema is None:
            return text
        try:
            return parse(self._schema, json.loads(text))
        except ValueError as error:
            message = error.message if isinstance(error, OutputError) else str(error)
            raise OutputError(f"the answer is not of the type asked for: {message}", text=text) from error


def extract(session: Session, turn: Turn, schema: Any = None, **arguments: Any) -> Any:
    """Return an answer of a given form. Arguments as in extract_stream(), errors as in ExtractStream.result."""
    stream = extract_stream(session, turn, schema, **arguments)
    for _ in stream._stream:
        pass
    return stream.result


def with_schema(turn: Turn, schema: Mapping[str, Any]) -> Turn:
    """Return a turn whose last message also says what is asked for, as extract() shows a schema to the model."""
    messages = (
        [Message("user", turn)] if isinstance(turn, str) else [turn] if isinstance(turn, Message) else [*turn]
    )
    if messages and messages[-1].role == "user":
        form = outline(schema)
        if form is None:
            asked = _SCHEMA_INSTRUCTION + json.dumps(schema, ensure_ascii=False)
        else:
            asked = _INSTRUCTION + form
        messages[-1] = Message("user", f"{messages[-1].content}\n\n{asked}")
    return messages
