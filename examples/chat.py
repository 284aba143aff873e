"""Two turns with a model, streamed; the second reuses the KV cache of the first.

python examples/chat.py model.gguf
"""

import sys

import qwen_edge


def main(path: str) -> None:
    with qwen_edge.load(path) as model, model.session(system="You are a helpful assistant.") as session:
        for question in ("What is the capital of Greece?", "And what is 12 + 30?"):
            stream = session.stream(question)
            for chunk in stream:
                print(chunk.text, end="", flush=True)
            stats = stream.reply.stats
            print(f"  [{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens were cached]")


if __name__ == "__main__":
    main(sys.argv[1])
