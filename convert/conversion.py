"""Converting a checkpoint: open it, check it against its config, write the GGUF file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_edge.config import AdapterLike, adapter_configs
from qwen_edge.convert.adapter import WEIGHTS_NAME
from qwen_edge.convert.adapter_merge import apply_adapters
from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.dtypes import OUTPUT_TYPES, OutputType, stored_type
from qwen_edge.convert.gguf_writer import PlannedTensor, write_gguf
from qwen_edge.convert.inputs import input_records
from qwen_edge.convert.matching import DroppedTensor, match_tensors
from qwen_edge.convert.qwen import ExpectedTensor, parse_config
from qwen_edge.convert.reranker import HEAD_NAME, RerankerHead, is_reranker, reranker_head
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.convert.vocabulary import read_vocabulary
from qwen_edge.errors import ConfigError
from qwen_edge.files import atomic_path, check_free_space
from qwen_edge.hub import origin_of
from qwen_edge.manifest import FileRecord, Manifest, manifest_path, tool_versions, write_manifest

# Metadata and padding of a file with a full Qwen vocabulary stay below this.
_HEADER_ALLOWANCE_BYTES = 16 << 20


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion made.

    Attributes:
        path: The GGUF file.
        architecture: "qwen2" or "qwen3".
        dtype: The type of its matrices; vectors and norms are F32.
        tensor_count: Tensors in the file.
        size_bytes: Its length.
        sha256: Its digest.
        manifest: The record beside it, see qwen_edge/manifest.py.
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
    sha256: str
    manifest: Path
    parameter_count: int
    dropped: tuple[DroppedTensor, ...]
    duration_s: float
    adapters: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            **asdict(self),
            "path": str(self.path),
            "manifest": str(self.manifest),
            "dropped": [asdict(tensor) for tensor in self.dropped],
            "adapters": [str(path) for path in self.adapters],
        }


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: OutputType = "bf16",
    adapters: Sequence[AdapterLike] = (),
    reranker: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Convert a Qwen3, Qwen2 or Qwen2.5 checkpoint to GGUF.

    Weights are read and written in pieces of a few MB: peak memory does not grow with the model. The target is
    written under a temporary name and appears when it is complete; an existing file is replaced. The same checkpoint
    and settings give the same bytes; a manifest beside the file says what they were.

    Args:
        source: A checkpoint folder, or one .safetensors file with config.json and tokenizer.json beside it.
        target: The GGUF file to make.
        dtype: Type of the matrices: "f32", "f16" or "bf16".
        adapters: PEFT adapters to merge, see `apply_adapters`. The sum is rounded to `dtype` once.
        reranker: Whether to make a reranker of it, see convert/reranker.py; None looks at what it calls itself.
        progress: Called with (done_bytes, total_bytes) of tensor data as they are written.

    Raises:
        ModelNotFoundError: There is nothing at `source`, or no adapter where one is named.
        CheckpointError: The checkpoint is incomplete, damaged, or contradicts its config.json; or an adapter is.
        UnsupportedError: It is well formed, and another architecture or format than can be converted.
        ConfigError: `dtype` is another, or `target` is a file of the checkpoint.
        WriteError: The disk is full, the target cannot be written, or another run writes it.
        OSError: A file cannot be read.
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
    vocabulary = read_vocabulary(checkpoint.folder, config.vocab_size, checkpoint.config)
    head = None
    if is_reranker(checkpoint, config) if reranker is None else reranker:
        entries = {expected.name: entry for expected, entry in found}
        head = reranker_head(checkpoint, config, vocabulary, entries)
        dropped += [
            DroppedTensor(entry.name, "a reranker keeps the rows of its answers only")
            for expected, entry in found
            if expected.gguf_name == "output.weight"
        ]
    tensors = _plan_tensors(found, head, dtype)
    needed_bytes = sum(tensor.n_bytes for tensor in tensors) + _HEADER_ALLOWANCE_BYTES
    check_free_space(target, needed_bytes)
    with atomic_path(target, needed_bytes=needed_bytes, exclusive=True) as part:
        write_gguf(
            part,
            checkpoint=checkpoint,
            config=config,
            vocabulary=vocabulary,
            tensors=tensors,
            head=head,
            dtype=dtype,
            progress=progress,
        )
        manifest_path(target).unlink(missing_ok=True)  # of an older file of this name
    settings = {
        "dtype": dtype,
        "reranker": head is not None,
        "adapters": [{"name": each.path.name, "scale": each.scale} for each in adapters],
    }
    artefact = FileRecord.of(target)
    manifest = Manifest(
        action="convert",
        artefact=artefact,
        origin=origin_of(checkpoint.folder),
        inputs=input_records(checkpoint, [each.path for each in adapters]),
        settings=settings,
        tools=tool_versions("gguf", "numpy"),
    )
    return ConversionReport(
        path=target,
        architecture=config.architecture,
        dtype=dtype,
        tensor_count=len(tensors),
        size_bytes=artefact.size_bytes,
        sha256=artefact.sha256,
        manifest=write_manifest(target, manifest),
        parameter_count=sum(tensor.source.n_elements for tensor in tensors),
        dropped=tuple(dropped),
        duration_s=time.monotonic() - started_s,
        adapters=tuple(each.path for each in adapters),
    )


def _plan_tensors(
    found: list[tuple[ExpectedTensor, TensorSource]], head: RerankerHead | None, dtype: OutputType
) -> list[PlannedTensor]:
    sources: list[tuple[str, TensorSource]] = [(expected.gguf_name, entry) for expected, entry in found]
    if head is not None:
        sources = [pair for pair in sources if pair[0] not in ("output.weight", HEAD_NAME)]
        sources.append((HEAD_NAME, head.tensor))
    return [
        PlannedTensor(source, name, stored_type(name, len(source.shape), dtype)) for name, source in sources
    ]


def _check_target(target: Path, sources: Sequence[Path]) -> None:
    if target.is_dir():
        raise ConfigError(
            f"the target {target} is a folder", hint=f"Name a file, such as {target / 'model.gguf'}"
        )
    if target.resolve() in [path.resolve() for path in sources]:
        raise ConfigError(
            f"the target {target} is a file of the checkpoint or of an adapter", hint="Name another file."
        )
