"""What an evaluated prompt depends on besides its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from qwen_edge import state_file
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.engines.base import Engine


def kv_fingerprint(engine: Engine, template: ChatTemplate) -> dict[str, Any] | None:
    """Return what must be equal for a KV cache of another process to be used; None where the engine saves none.

    The engine's own part (weights, build, KV type, settings that change the form of the cache, adapters and their
    scales), the template, and the version of the file's form. JSON-ready.
    """
    identity = engine.state_identity()
    if identity is None:
        return None
    return {
        "format": state_file.VERSION,
        "template": hashlib.sha256(template.source.encode("utf-8", "surrogatepass")).hexdigest(),
        **identity,
    }


def differences(saved: Mapping[str, Any] | None, current: Mapping[str, Any] | None) -> list[str]:
    """Return the names of what differs between two fingerprints, sorted; of a missing one, all names."""
    saved, current = saved or {}, current or {}
    return sorted(name for name in {*saved, *current} if saved.get(name) != current.get(name))
