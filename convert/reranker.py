"""Rerankers: a language model whose answer "yes" or "no" to "does this document fit the query?" is the score.

llama.cpp wants them with a head of two rows, `cls.output.weight`, and the pooling type RANK: it returns the softmax
of that head after the last token. Three kinds of checkpoints come to it:

- Qwen3-Reranker: the rows of "yes" and "no" are cut out of the language model's head;
- a sequence classifier of two labels: its `score.weight` is that head;
- one of a single label, whose probability is the sigmoid of its score: a row of zeros beside it makes
  softmax([score, 0]) the same number.

Source: `Qwen3Model` in llama.cpp's converter; `build_pooling` in src/llama-graph.cpp.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.json_files import Fields
from qwen_edge.convert.qwen import QwenConfig
from qwen_edge.convert.safetensors_file import ITEM_BYTES
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.convert.vocabulary import NORMAL, Vocabulary
from qwen_edge.errors import UnsupportedError

HEAD_NAME = "cls.output.weight"
_ANSWERS = ("yes", "no")
_PIECE_BYTES = 4 << 20
_NAME_HINT = "qwen3-reranker"
_README_HINT = "# qwen3-reranker"

# The words that Qwen3-Reranker was trained with, as llama.cpp looks for them. Source: the model card.
PROMPT = {
    "name": "rerank",
    "template": "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
}


@dataclass(frozen=True)
class PickedRows:
    """Some rows of a matrix as a matrix of their own.

    Attributes:
        source: The matrix.
        rows: Which, in their order; None stands for a row of zeros.
    """

    source: TensorSource
    rows: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """That of the source."""
        return self.source.dtype

    @property
    def path(self) -> Path:
        """That of the source."""
        return self.source.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns."""
        return (len(self.rows), self.source.shape[1])

    @property
    def n_elements(self) -> int:
        """Rows times columns."""
        return len(self.rows) * self.source.shape[1]

    @property
    def n_bytes(self) -> int:
        """In the source's type."""
        return self.n_elements * ITEM_BYTES[self.dtype]

    def check_convertible(self) -> None:
        """See TensorSource."""
        self.source.check_convertible()

    def read_pieces(self, piece_bytes: int) -> Generator[bytes, None, None]:
        """Yield the rows one by one; they are small."""
        row_bytes = self.source.shape[1] * ITEM_BYTES[self.dtype]
        found: dict[int, bytes] = {}
        rows_a_piece = max(1, _PIECE_BYTES // row_bytes)
        for index, piece in enumerate(self.source.read_pieces(rows_a_piece * row_bytes)):
            first = index * rows_a_piece
            for row in self.rows:
                if row is not None and first <= row < first + rows_a_piece:
                    start = (row - first) * row_bytes
                    found[row] = piece[start : start + row_bytes]
        for row in self.rows:
            yield found[row] if row is not None else bytes(row_bytes)


@dataclass(frozen=True)
class RerankerHead:
    """The head that llama.cpp takes the softmax of.

    Attributes:
        tensor: One row a class.
        labels: What each class means; the first is the score.
    """

    tensor: TensorSource
    labels: tuple[str, ...]


def is_reranker(checkpoint: Checkpoint, config: QwenConfig) -> bool:
    """Tell whether a checkpoint is a reranker: a sequence classifier, or one that calls itself Qwen3-Reranker."""
    if config.n_labels:
        return True
    names = (checkpoint.name, checkpoint.config.get("_name_or_path"))
    if any(isinstance(name, str) and _NAME_HINT in name.lower() for name in names):
        return config.architecture == "qwen3"
    readme = checkpoint.folder / "README.md"
    return (
        config.architecture == "qwen3"
        and readme.is_file()
        and _README_HINT in readme.read_text(encoding="utf-8", errors="replace").lower()
    )


def reranker_head(
    checkpoint: Checkpoint, config: QwenConfig, vocabulary: Vocabulary, tensors: Mapping[str, TensorSource]
) -> RerankerHead:
    """Return the head of a reranker.

    Args:
        checkpoint: For the labels of a sequence classifier.
        config: Its parameters.
        vocabulary: For the ids of "yes" and "no".
        tensors: The checkpoint's tensors, named as in ExpectedTensor.

    Raises:
        UnsupportedError: It is no Qwen3 model, or its vocabulary has no "yes" or "no".
    """
    if config.architecture != "qwen3":
        raise UnsupportedError(
            f"{checkpoint.folder} is a {config.architecture} reranker; llama.cpp makes probabilities for qwen3 only",
            hint="Take a reranker that was made from Qwen3.",
        )
    if config.n_labels == 1:
        return RerankerHead(PickedRows(tensors["score.weight"], (0, None)), _ANSWERS)
    if config.n_labels:
        return RerankerHead(tensors["score.weight"], _labels(checkpoint, config.n_labels))
    ids = [
        next((token for token, text in enumerate(vocabulary.tokens) if text == answer), None)
        for answer in _ANSWERS
    ]
    if any(token is None or vocabulary.token_types[token] != NORMAL for token in ids):
        raise UnsupportedError(
            f"{checkpoint.folder} looks like a reranker, but its vocabulary lacks the token 'yes' or 'no'",
            hint="Convert it as a plain language model with --no-reranker.",
        )
    head = tensors["embed_tokens.weight" if config.is_tied else "lm_head.weight"]
    return RerankerHead(PickedRows(head, tuple(ids)), _ANSWERS)


def _labels(checkpoint: Checkpoint, n_labels: int) -> tuple[str, ...]:
    fields = Fields(checkpoint.config, str(checkpoint.folder / "config.json")).table("id2label")
    return tuple(fields.text(str(label), f"LABEL_{label}") for label in range(n_labels))
