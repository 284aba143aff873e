"""How an embedding model makes one vector of a text: read from its sentence-transformers files.

Source: `_try_set_pooling_type` in llama.cpp's converter.
"""

from __future__ import annotations

import json
from pathlib import Path

from qwen_edge.convert.json_files import Fields, read_object, read_text
from qwen_edge.errors import CheckpointError, UnsupportedError

# Key in the pooling module's config.json -> name in gguf.PoolingType.
_MODES = {
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_lasttoken": "LAST",
}
# The same as newer writers put it, under "pooling_mode".
_NAMED_MODES = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST"}


def read_pooling(folder: Path) -> str | None:
    """Return "MEAN", "CLS" or "LAST", or None where the checkpoint is no embedding model.

    Raises:
        CheckpointError: modules.json or the pooling module's config.json is missing or malformed.
        UnsupportedError: The pooling is another.
    """
    path = _pooling_config(folder / "modules.json")
    if path is None:
        return None
    fields = Fields(read_object(path), str(path))
    for key, pooling in _MODES.items():
        if fields.boolean(key, default=False):
            return pooling
    mode = fields.text("pooling_mode")
    if mode not in _NAMED_MODES:
        raise UnsupportedError(
            f"{path}: the pooling is none of mean, cls and last token",
            hint="Remove modules.json to convert the model as a plain language model.",
        )
    return _NAMED_MODES[mode]


def _pooling_config(modules_path: Path) -> Path | None:
    """Return the path of the pooling module's config.json, None where there is no such module."""
    if not modules_path.is_file():
        return None
    try:
        modules = json.loads(read_text(modules_path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{modules_path} is not valid JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{modules_path} is no list of modules")
    for module in modules:
        fields = Fields(module, str(modules_path))
        if fields.text("type").endswith("Pooling"):
            # Only the last part: a module lies in a folder beside this file, never elsewhere.
            name = Path(fields.text("path")).name
            return modules_path.parent / name / "config.json"
    return None
