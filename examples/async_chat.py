"""Two conversations at once with one model, one of them under a time limit.

python examples/async_chat.py model.gguf
"""

import asyncio
import sys

import qwen_edge


async def stream(model: qwen_edge.Model, question: str) -> str:
    with model.session() as session:
        parts = []
        async for chunk in session.astream(question, thinking="off"):
            parts.append(chunk.text)
            print(f"[{question}] {chunk.text!r}")
        return "".join(parts)


async def ask_within(model: qwen_edge.Model, question: str, seconds: float) -> str:
    with model.session() as session:
        try:
            async with asyncio.timeout(seconds):  # stops the native call, wherever it is
                return (await session.asend(question)).text
        except TimeoutError:
            return f"no answer within {seconds} s"


async def main(path: str) -> None:
    # Replies side by side share the cores: one thread each, or they wait for each other.
    with qwen_edge.load(path, n_threads=1) as model:
        answers = await asyncio.gather(
            stream(model, "What is the capital of Greece?"),
            ask_within(model, "What is 12 + 30?", seconds=60),
            ask_within(model, "Tell me everything. " * 100, seconds=0.01),
        )
    for answer in answers:
        print("answer:", answer)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
