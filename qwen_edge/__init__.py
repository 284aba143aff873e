"""qwen-edge: small Qwen models on the machine in front of you.

Importing this package loads nothing heavy; each name below is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.config import LoadConfig as LoadConfig
    from qwen_edge.config import SamplingConfig as SamplingConfig
    from qwen_edge.config import ThinkingConfig as ThinkingConfig
    from qwen_edge.errors import OutputError as OutputError
    from qwen_edge.errors import QwenEdgeError as QwenEdgeError
    from qwen_edge.errors import ToolError as ToolError
    from qwen_edge.model import Model as Model
    from qwen_edge.model import load as load
    from qwen_edge.overflow import TurnsDroppedWarning as TurnsDroppedWarning
    from qwen_edge.prefix_turn import Prewarmed as Prewarmed
    from qwen_edge.session import Session as Session
    from qwen_edge.session_file import StateRebuiltWarning as StateRebuiltWarning
    from qwen_edge.types import Chunk as Chunk
    from qwen_edge.types import GenerationStats as GenerationStats
    from qwen_edge.types import Message as Message
    from qwen_edge.types import Reply as Reply
    from qwen_edge.types import TokenLogprob as TokenLogprob
    from qwen_edge.types import ToolCall as ToolCall

__version__ = "0.1.0"

_HOMES = {
    "Chunk": ".types",
    "GenerationStats": ".types",
    "LoadConfig": ".config",
    "Message": ".types",
    "Model": ".model",
    "OutputError": ".errors",
    "Prewarmed": ".prefix_turn",
    "QwenEdgeError": ".errors",
    "Reply": ".types",
    "SamplingConfig": ".config",
    "Session": ".session",
    "StateRebuiltWarning": ".session_file",
    "ThinkingConfig": ".config",
    "TokenLogprob": ".types",
    "ToolCall": ".types",
    "ToolError": ".errors",
    "TurnsDroppedWarning": ".overflow",
    "load": ".model",
}

__all__ = [
    "Chunk",
    "GenerationStats",
    "LoadConfig",
    "Message",
    "Model",
    "OutputError",
    "Prewarmed",
    "QwenEdgeError",
    "Reply",
    "SamplingConfig",
    "Session",
    "StateRebuiltWarning",
    "ThinkingConfig",
    "TokenLogprob",
    "ToolCall",
    "ToolError",
    "TurnsDroppedWarning",
    "load",
]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
