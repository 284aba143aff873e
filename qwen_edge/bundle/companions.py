"""What belongs beside a model and is on this machine already: tokenizer files and the text of its licence."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.facts import ModelFacts
from qwen_edge.errors import QwenEdgeError
from qwen_edge.hub import cached_repository, locate_checkpoint
from qwen_edge.manifest import Origin
from qwen_edge.paths import models_folder

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json")
_MAX_LICENCE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Files of the publisher.

    Attributes:
        tokenizer: tokenizer.json and tokenizer_config.json, those that are here; () where none is, or it is another model's.
        licence: Text of the licence, None where no file has it.
        reason: Why there is no tokenizer; "" where there is one.
    """

    tokenizer: tuple[Path, ...]
    licence: Path | None
    reason: str


def find_companions(facts: ModelFacts, origin: Origin, checkpoint: Path | None) -> Companions:
    """Look for them in the checkpoint that was named, else in that which the model was made from.

    Args:
        facts: The model.
        origin: Where it was published.
        checkpoint: A folder; None looks for it by the origin and the catalog.

    Raises:
        OSError: A file cannot be read.
    """
    folder = checkpoint or _checkpoint_of(facts, origin)
    places = [place for place in (folder, _published_folder(facts.path)) if place is not None]
    licence = next((file for place in places if (file := _licence_in(place)) is not None), None)
    if facts.header is None:
        return Companions(tokenizer=(), licence=licence, reason="")
    reason = "its checkpoint is not here" if folder is None else _mismatch(facts, folder / TOKENIZER_NAMES[0])
    files = () if folder is None or reason else tuple(folder / name for name in TOKENIZER_NAMES)
    return Companions(
        tokenizer=tuple(file for file in files if file.is_file()), licence=licence, reason=reason
    )


def _checkpoint_of(facts: ModelFacts, origin: Origin) -> Path | None:
    row = facts.row
    for name in (
        origin.location if origin.kind in ("huggingface", "modelscope") else "",
        row.name if row else "",
    ):
        if not name:
            continue
        try:
            return locate_checkpoint(name)
        except QwenEdgeError:  # not here, or no name of a checkpoint: there are other places
            continue
    return None


def _published_folder(path: Path) -> Path | None:
    """Return the folder of a file that was pulled, which holds one publisher's files only."""
    folder = path.parent.absolute()
    if cached_repository(path) is not None or folder.parent == models_folder().absolute():
        return folder
    return None


def _licence_in(folder: Path) -> Path | None:
    found = sorted(
        file
        for file in folder.glob("LICENSE*")
        if file.is_file() and os.stat(file).st_size <= _MAX_LICENCE_BYTES  # noqa: PTH116 - follows the cache's links
    )
    return found[0] if found else None


def _mismatch(facts: ModelFacts, file: Path) -> str:
    """Return why a tokenizer.json is not the model's, "" where it is: each of its tokens has the model's text."""
    if not file.is_file():
        return f"its checkpoint has no {file.name}"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        by_id = {token: text for text, token in data["model"]["vocab"].items()}
        by_id |= {entry["id"]: entry["content"] for entry in data.get("added_tokens", ())}
        same = all(facts.tokens[token] == text.encode() for token, text in by_id.items())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        same = False
    return "" if same else f"{file.name} of its checkpoint has other tokens than the model"
