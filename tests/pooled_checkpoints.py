"""Small embedding models and rerankers with random weights, for tests of what is made of whole texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests import synthetic

# Room for the whole prompt of a reranker, whose words are single bytes here.
SHAPE = replace(synthetic.TINY, hidden=64, ffn=96, context=4096)
END_OF_TEXT = "<|endoftext|>"


def yes_no_tokenizer() -> dict[str, Any]:
    """Return tokenizer.json with "yes" and "no" as tokens."""
    tokenizer = synthetic.tiny_tokenizer()
    merges = [*tokenizer["model"]["merges"], "y e", "ye s", "n o"]
    tokens = [*synthetic.byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    added = [(token["content"], token["special"]) for token in tokenizer["added_tokens"]]
    return synthetic.tokenizer_json({token: index for index, token in enumerate(tokens)}, merges, added)


def write_embedding_model(folder: Path, pooling: str = "lasttoken") -> Path:
    """Write an embedding model that appends <|endoftext|> to each text, as Qwen3-Embedding does."""
    tokenizer = yes_no_tokenizer()
    (end,) = (token["id"] for token in tokenizer["added_tokens"] if token["content"] == END_OF_TEXT)
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [end], "tokens": [END_OF_TEXT]}},
    }
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"], template]}
    synthetic.write_checkpoint(folder, SHAPE, tokenizer=tokenizer, dtype="F32", std=0.2)
    (folder / "1_Pooling").mkdir()
    synthetic.write_json(folder / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True})
    synthetic.write_json(
        folder / "modules.json", [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    )
    return folder


def write_reranker(folder: Path) -> Path:
    """Write a reranker like Qwen3-Reranker; the converter knows it by the folder's name."""
    assert "qwen3-reranker" in folder.name.lower()
    return synthetic.write_checkpoint(folder, SHAPE, tokenizer=yes_no_tokenizer(), dtype="F32", std=0.2)
