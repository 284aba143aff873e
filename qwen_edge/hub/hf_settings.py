"""What huggingface_hub was told by its environment: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qwen_edge.errors import NoFolderError


def endpoint() -> str:
    """Return the hub's address."""
    return str(_constants().ENDPOINT)


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    return bool(_constants().HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Return the folder of huggingface_hub's cache.

    Raises:
        NoFolderError: There is no home to have it in.
    """
    folder = Path(_constants().HF_HUB_CACHE)
    if folder.parts[:1] == ("~",):
        raise NoFolderError(
            "there is no home folder for the cache of Hugging Face",
            hint="Set HF_HOME to a folder that can be written.",
        )
    return folder


def _constants() -> Any:
    # Read at its first import, which is this one.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    return constants
