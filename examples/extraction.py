"""Text to objects: a dataclass, a pydantic model, and an object that can be shown while it is written.

python examples/extraction.py model.gguf "Max is 30 years old and lives in Vienna."
"""

import sys
from dataclasses import dataclass

import pydantic

import qwen_edge

# The likeliest answer, at once.
OPTIONS = {"thinking": "off", "max_tokens": 100, "sampling": qwen_edge.SamplingConfig(temperature=0)}


@dataclass
class Person:
    name: str
    age: int


class Address(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=40)
    country: str | None  # None: the text does not say


def main(path: str, text: str) -> None:
    with qwen_edge.load(path) as model:
        with model.session() as session:
            stream = session.extract_stream(text, Person, **OPTIONS)
            for partial in stream:  # dictionaries and lists as far as they are written
                print("so far:", partial)
            person = stream.result
            print(person, "will be", person.age + 1)
        with model.session() as session:
            try:
                print(repr(session.extract(text, Address, **OPTIONS)))
            except qwen_edge.OutputError as error:  # cut off, or refused by the type
                print("no address:", error)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
