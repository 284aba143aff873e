"""LlamaIndex with local models: its index embeds with one, its query engine answers with another.

pip install llama-index-core
python examples/llamaindex_rag.py chat.gguf qwen3-embedding-0.6b.gguf "Which city governs Greece?" notes.txt
"""

import sys
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata

import qwen_edge


class QwenEdgeLLM(CustomLLM):
    model: object  # a qwen_edge.Model

    @property
    def metadata(self):
        return LLMMetadata(context_window=self.model.info.settings["n_ctx"], num_output=256)

    def complete(self, prompt, formatted=False, **options):
        *_, last = self.stream_complete(prompt, **options)
        return last

    def stream_complete(self, prompt, formatted=False, **options):
        text = ""
        with self.model.session() as session:
            for chunk in session.stream(prompt, thinking="off", max_tokens=256, **options):
                text += chunk.text
                yield CompletionResponse(text=text, delta=chunk.text)


class QwenEdgeEmbedding(BaseEmbedding):
    model: object  # a qwen_edge.Model

    def _get_text_embedding(self, text):
        return self.model.embed(text)[0].tolist()

    def _get_text_embeddings(self, texts):
        return self.model.embed(texts).tolist()

    def _get_query_embedding(self, query):
        return self.model.embed(query, is_query=True)[0].tolist()

    async def _aget_query_embedding(self, query):
        return (await self.model.aembed(query, is_query=True))[0].tolist()


chat_path, embedder_path, question, notes = sys.argv[1:]
with qwen_edge.load(chat_path) as chat, qwen_edge.load(embedder_path) as embedder:
    documents = [Document(text=part) for part in Path(notes).read_text().split("\n\n") if part.strip()]
    index = VectorStoreIndex.from_documents(documents, embed_model=QwenEdgeEmbedding(model=embedder))
    response = index.as_query_engine(llm=QwenEdgeLLM(model=chat), streaming=True).query(question)
    print("answer: ", *response.response_gen, sep="")
    print(*(f"source ({node.score:.2f}): {node.text}" for node in response.source_nodes), sep="\n")
