"""Semantic search: the texts that mean what is asked, whatever their words are.

python examples/embeddings.py qwen3-embedding-0.6b.gguf "Which city governs Greece?" [texts.txt]
"""

import sys
from pathlib import Path

import qwen_edge

TEXTS = [
    "Athens is the capital of Greece.",
    "Bread is baked from flour, water, salt and yeast.",
    "A bicycle has two wheels and no engine.",
    "Vienna lies on the Danube.",
]


def main(path: str, question: str, texts: list[str]) -> None:
    with qwen_edge.load(path) as model:
        documents = model.embed(texts)
        (query,) = model.embed(question, is_query=True)
    scores = documents @ query  # cosines: each vector has length 1
    for index in (-scores).argsort()[:3]:
        print(f"{scores[index]:6.3f}  {texts[index]}")


if __name__ == "__main__":
    lines = Path(sys.argv[3]).read_text().splitlines() if len(sys.argv) > 3 else TEXTS
    main(sys.argv[1], sys.argv[2], [line for line in lines if line.strip()])
