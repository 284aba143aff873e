"""The files that a conversion is made from, with their digests: for its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen_edge.convert.checkpoint import INDEX_NAME, Checkpoint
from qwen_edge.manifest import FileRecord, records_of

# Besides the weights: all that the converter looks at.
_SIDE_FILES = (
    INDEX_NAME,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "*_Pooling/config.json",
    "README.md",
)
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def input_records(checkpoint: Checkpoint, adapters: Sequence[Path]) -> tuple[FileRecord, ...]:
    """Return the records of a checkpoint's files, and of those of adapters under their folders' names.

    A file that was pulled, or is unchanged since the last conversion, is not read again for its digest.

    Raises:
        OSError: A file cannot be read.
    """
    files = {path for pattern in _SIDE_FILES for path in checkpoint.folder.glob(pattern) if path.is_file()}
    records = records_of({*files, *checkpoint.weight_files}, checkpoint.folder)
    for folder in adapters:
        here = [folder / name for name in _ADAPTER_FILES if (folder / name).is_file()]
        records += records_of(here, folder.parent)
    return records
