"""Answers from your own texts: find candidates by embedding, order them by reranking, let the model answer from the best.

python examples/rag.py chat.gguf qwen3-embedding-0.6b.gguf qwen3-reranker-0.6b.gguf "Who wrote the book?" notes.txt
"""

import sys
from pathlib import Path

import qwen_edge

N_CANDIDATES, N_USED = 20, 3


def find(embedder_path: str, reranker_path: str, question: str, texts: list[str]) -> list[str]:
    """Return the texts that answer best. One model is in memory at a time."""
    with qwen_edge.load(embedder_path) as embedder:
        scores = embedder.embed(texts) @ embedder.embed(question, is_query=True)[0]
    candidates = [texts[index] for index in (-scores).argsort()[:N_CANDIDATES]]
    with qwen_edge.load(reranker_path) as reranker:
        ranked = reranker.rerank(question, candidates)
    for index, score in ranked[:N_USED]:
        print(f"source ({score:.2f}): {candidates[index]}")
    return [candidates[index] for index, _ in ranked[:N_USED]]


def answer(chat_path: str, question: str, sources: list[str]) -> None:
    system = "Answer from these sources alone:\n" + "\n".join(f"- {source}" for source in sources)
    with qwen_edge.load(chat_path) as model, model.session(system=system) as session:
        print("answer: ", end="")
        for chunk in session.stream(question, thinking="off", max_tokens=300):
            print(chunk.text, end="", flush=True)
        print()


def main(chat: str, embedder: str, reranker: str, question: str, notes: str) -> None:
    texts = [part.strip() for part in Path(notes).read_text().split("\n\n") if part.strip()]
    answer(chat, question, find(embedder, reranker, question, texts))


if __name__ == "__main__":
    main(*sys.argv[1:])
