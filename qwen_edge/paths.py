"""Where qwen-edge keeps its own files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder for everything that can be made again: QWEN_EDGE_CACHE, else the user's cache folder."""
    override = os.environ.get("QWEN_EDGE_CACHE")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("qwen-edge"))


def models_folder() -> Path:
    """Return the folder for downloaded model files."""
    return cache_root() / "models"
