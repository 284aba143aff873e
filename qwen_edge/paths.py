"""Where qwen-edge keeps its own files."""

from __future__ import annotations

import os
from pathlib import Path

from qwen_edge.errors import NoFolderError


def cache_root() -> Path:
    """Return the folder for everything that can be made again: QWEN_EDGE_CACHE, else the user's cache folder.

    Raises:
        NoFolderError: There is no home to have one in. It is an OSError too: what is only remembered there can do without.
    """
    override = os.environ.get("QWEN_EDGE_CACHE")
    if override:
        try:
            return Path(override).expanduser()
        except RuntimeError as error:
            raise NoFolderError(
                f"QWEN_EDGE_CACHE is {override!r}, and there is no such user",
                hint="Set it to a folder that can be written.",
            ) from error
    import platformdirs

    try:
        folder = Path(platformdirs.user_cache_dir("qwen-edge"))
    except RuntimeError:  # newer versions of platformdirs; older ones leave the "~"
        folder = Path("~")
    if not folder.is_absolute():  # neither HOME nor the system's list of users tells a home
        raise NoFolderError(
            "there is no home folder to keep files in",
            hint="Set QWEN_EDGE_CACHE to a folder that can be written.",
        )
    return folder


def models_folder() -> Path:
    """Return the folder for downloaded model files."""
    return cache_root() / "models"


def tune_folder() -> Path:
    """Return the folder for the fastest settings that were found."""
    return cache_root() / "tune"


def prefixes_folder() -> Path:
    """Return the folder for evaluated prompt prefixes."""
    return cache_root() / "prefixes"
