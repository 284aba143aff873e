"""One text into several languages. Each gets a session, so that no translation colours the next.

python examples/translator.py model.gguf "dog" German French Spanish
"""

import sys

import qwen_edge

SYSTEM = "You are a translator. Answer with the translation alone."


def main(path: str, text: str, languages: list[str]) -> None:
    with qwen_edge.load(path) as model:
        for language in languages:
            with model.session(system=SYSTEM) as session:
                stream = session.stream(f"Translate {text!r} to {language}.", thinking="off", max_tokens=500)
                print(f"{language}: ", end="")
                for chunk in stream:
                    print(chunk.text, end="", flush=True)
                print()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
