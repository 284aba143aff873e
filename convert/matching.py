"""Which tensor of a checkpoint is which of the model, and what is left over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.qwen import ExpectedTensor, QwenConfig, expected_tensors
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.errors import CheckpointError

_COMPARE_BYTES = 4 << 20
_NAMES_IN_MESSAGE = 4


@dataclass(frozen=True)
class DroppedTensor:
    """A tensor of the checkpoint that the GGUF file does not need.

    Attributes:
        name: In the checkpoint.
        reason: Why nothing is lost.
    """

    name: str
    reason: str


def match_tensors(
    checkpoint: Checkpoint, config: QwenConfig
) -> tuple[list[tuple[ExpectedTensor, TensorSource]], list[DroppedTensor]]:
    """Pair each expected tensor with the checkpoint's, and account for the rest.

    Returns:
        The pairs in the order of the file, and what is left out.

    Raises:
        CheckpointError: A tensor is missing, unknown, there twice, or of a shape that contradicts config.json.
        UnsupportedError: A tensor has a type that cannot be converted.
    """
    left_over = _without_prefix(checkpoint)
    expected = expected_tensors(config)
    missing = [tensor for tensor in expected if tensor.name not in left_over]
    if missing:
        raise _missing_error(missing, checkpoint, config)
    found = [(tensor, left_over.pop(tensor.name)) for tensor in expected]
    for tensor, entry in found:
        _check_entry(tensor, entry)
    embedding = found[0][1]
    dropped = list(_drop_redundant(left_over, config, embedding))
    if left_over:
        raise CheckpointError(
            f"{checkpoint.folder} holds tensors that {config.architecture} does not have: "
            + _some([f"{entry.name!r} in {entry.path.name}" for entry in left_over.values()]),
            hint="Adapters (LoRA) have to be merged first; other models need a converter of their own.",
        )
    return found, dropped


def _without_prefix(checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """Return the tensors by name without "model.": bare models are published without it."""
    tensors: dict[str, TensorSource] = {}
    for name, entry in checkpoint.tensors.items():
        short = name.removeprefix("model.")
        if short in tensors:
            raise CheckpointError(
                f"{checkpoint.folder} holds one tensor twice: {tensors[short].name!r} in {tensors[short].path.name} "
                f"and {name!r} in {entry.path.name}",
                hint="Remove the files that do not belong to this checkpoint.",
            )
        tensors[short] = entry
    return tensors


def _missing_error(
    missing: list[ExpectedTensor], checkpoint: Checkpoint, config: QwenConfig
) -> CheckpointError:
    hint = "Fetch the checkpoint again with all its files; of several shards, give their folder."
    if [tensor.name for tensor in missing] == ["lm_head.weight"]:
        hint = 'If the head is the embedding, config.json has to say "tie_word_embeddings": true.'
    files = ", ".join(path.name for path in checkpoint.weight_files) or "no tensors at all"
    return CheckpointError(
        f"{checkpoint.folder} lacks tensors of {config.architecture} with {config.n_layers} layers: "
        f"{_some([repr(tensor.name) for tensor in missing])} (found: {files})",
        hint=hint,
    )


def _check_entry(tensor: ExpectedTensor, entry: TensorSource) -> None:
    entry.check_convertible()
    if entry.shape != tensor.shape:
        raise CheckpointError(
            f"{entry.name!r} in {entry.path} has shape {list(entry.shape)}; "
            f"config.json asks for {list(tensor.shape)}",
            hint="config.json and the weights belong to different models, or one of them is damaged.",
        )


def _drop_redundant(
    left_over: dict[str, TensorSource], config: QwenConfig, embedding: TensorSource
) -> Iterator[DroppedTensor]:
    """Take out of `left_over` what the file does not need."""
    head = left_over.pop("lm_head.weight", None)
    if head is not None and config.n_labels:
        yield DroppedTensor(head.name, "a classifier does not predict tokens")
    elif head is not None:
        assert config.is_tied, "Bug: an untied head is an expected tensor"
        _check_copy(head, embedding)
        yield DroppedTensor(head.name, f"a bitwise copy of {embedding.name}, to which the head is tied")
    for name in [name for name in left_over if name.endswith(".rotary_emb.inv_freq")]:
        yield DroppedTensor(left_over.pop(name).name, "computed from rope_theta")


def _check_copy(head: TensorSource, embedding: TensorSource) -> None:
    """Check that a tied head which the checkpoint carries all the same is the embedding, bit for bit."""
    is_copy = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    if is_copy:
        with (
            closing(head.read_pieces(_COMPARE_BYTES)) as head_pieces,
            closing(embedding.read_pieces(_COMPARE_BYTES)) as embedding_pieces,
        ):
            is_copy = all(left == right for left, right in zip(head_pieces, embedding_pieces, strict=True))
    if not is_copy:
        raise CheckpointError(
            f"config.json ties the head to the embedding, but {head.name!r} in {head.path} "
            f"({head.dtype} {list(head.shape)}) is not a copy of {embedding.name!r} in {embedding.path} "
            f"({embedding.dtype} {list(embedding.shape)})",
            hint='If the head was trained apart, set "tie_word_embeddings": false in config.json; '
            "if not, remove it from the checkpoint.",
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_IN_MESSAGE
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
