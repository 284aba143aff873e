"""`qwen-edge --verbose`: our own steps and the native library's log, on stderr."""

from __future__ import annotations

import logging
import os


def tell_steps() -> None:
    """Print what the logger "qwen_edge" is told, each line with the time since the start, and llama.cpp's log."""
    # Read when the library is loaded, by child processes too.
    os.environ["QWEN_EDGE_NATIVE_LOG"] = "1"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[{relativeCreated:8.0f} ms] {message}", style="{"))
    logger = logging.getLogger("qwen_edge")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
