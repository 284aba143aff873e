"""Converting a checkpoint: open it, check it against its config, write the GGUF file."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_edge.config import AdapterLike, adapter_configs
from qwen_edge.convert.adapter import WEIGHTS_NAME
from qwen_edge.convert.adapter_merge import apply_adapters
from qwen_edge.convert.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.convert.dtypes import OUTPUT_TYPES, OutputType, stored_type
from qwen_edge.convert.gguf_writer import PlannedTensor, write_gguf
from qwen_edge.convert.qwen import ExpectedTensor, QwenConfig, expected_tensors, parse_config
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.convert.vocabulary import read_vocabulary
from qwen_edge.errors import CheckpointError, ConfigError
from qwen_edge.files import atomic_path

_COMPARE_BYTES = 4 << 20
# Metadata and padding of a file with a full Qwen vocabulary stay below this.
_HEADER_ALLOWANCE_BYTES = 16 << 20
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


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion made.

    Attributes:
        path: The GGUF file.
        architecture: "qwen2" or "qwen3".
        dtype: The type of its matrices; vectors and norms are F32.
        tensor_count: Tensors in the file.
        size_bytes: Its length.
        parameter_count: Weights in it, a tied head counted once.
        dropped: Tensors of the checkpoint that are not in it.
        duration_s: Wall-clock time.
        adapters: Folders of the adapters that were merged.
    """

    path: Path
    architecture: str
    dtype: str
    tensor_count: int
    size_bytes: int
    parameter_count: int
    dropped: tuple[DroppedTensor, ...]
    duration_s: float
    adapters: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            **asdict(self),
            "path": str(self.path),
            "dropped": [asdict(tensor) for tensor in self.dropped],
            "adapters": [str(path) for path in self.adapters],
        }


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: OutputType = "bf16",
    adapters: Sequence[AdapterLike] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Convert a Qwen3, Qwen2 or Qwen2.5 checkpoint to GGUF.

    Weights are read and written in pieces of a few MB: peak memory does not grow with the model. The target is
    written under a temporary name and appears when it is complete; an existing file is replaced.

    Args:
        source: A checkpoint folder, or one .safetensors file with config.json and tokenizer.json beside it.
        target: The GGUF file to make.
        dtype: Type of the matrices: "f32", "f16" or "bf16".
        adapters: PEFT adapters to merge, see `apply_adapters`. The sum is rounded to `dtype` once.
        progress: Called with (done_bytes, total_bytes) of tensor data as they are written.

    Raises:
        ModelNotFoundError: There is nothing at `source`, or no adapter where one is named.
        CheckpointError: The checkpoint is incomplete, damaged, or contradicts its config.json; or an adapter is.
        UnsupportedError: It is well formed, and another architecture or format than can be converted.
        ConfigError: `dtype` is another, or `target` is a file of the checkpoint.
        OSError: A file cannot be read or written, or the disk is full.
    """
    started_s = time.monotonic()
    if dtype not in OUTPUT_TYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(OUTPUT_TYPES)}")
    checkpoint = open_checkpoint(source)
    target = Path(target)
    adapters = adapter_configs(adapters)
    _check_target(target, [*checkpoint.weight_files, *(each.path / WEIGHTS_NAME for each in adapters)])
    checkpoint = apply_adapters(checkpoint, adapters) if adapters else checkpoint
    config = parse_config(checkpoint.config, str(checkpoint.folder / "config.json"))
    found, dropped = match_tensors(checkpoint, config)
    tensors = [
        PlannedTensor(entry, expected.gguf_name, stored_type(expected.gguf_name, len(expected.shape), dtype))
        for expected, entry in found
    ]
    vocabulary = read_vocabulary(checkpoint.folder, config.vocab_size, checkpoint.config)
    _check_free_space(target, sum(tensor.n_bytes for tensor in tensors))
    with atomic_path(target) as part:
        write_gguf(
            part,
            checkpoint=checkpoint,
            config=config,
            vocabulary=vocabulary,
            tensors=tensors,
            dtype=dtype,
            progress=progress,
        )
    return ConversionReport(
        path=target,
        architecture=config.architecture,
        dtype=dtype,
        tensor_count=len(tensors),
        size_bytes=target.stat().st_size,
        parameter_count=sum(tensor.source.n_elements for tensor in tensors),
        dropped=tuple(dropped),
        duration_s=time.monotonic() - started_s,
        adapters=tuple(each.path for each in adapters),
    )


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
    if head is not None:
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


def _check_target(target: Path, sources: Sequence[Path]) -> None:
    if target.is_dir():
        raise ConfigError(
            f"the target {target} is a folder", hint=f"Name a file, such as {target / 'model.gguf'}"
        )
    if target.resolve() in [path.resolve() for path in sources]:
        raise ConfigError(
            f"the target {target} is a file of the checkpoint or of an adapter", hint="Name another file."
        )


def _check_free_space(target: Path, tensor_bytes: int) -> None:
    """Fail at once rather than after minutes, where the file cannot fit."""
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < tensor_bytes + _HEADER_ALLOWANCE_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space: the file takes {tensor_bytes / 1e6:.1f} MB, {free_bytes / 1e6:.1f} MB are free",
            str(target),
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_IN_MESSAGE
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
