"""The models that have a name here: finding one, and the sampling that its authors recommend."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.catalog_rows import QWEN2_DIRECT, QWEN3_DIRECT, QWEN3_THINKING, ROWS
from qwen_edge.catalog_types import CatalogModel, ModelKind, PublishedFile, Shape, Thinking, WheelParts
from qwen_edge.config import SamplingConfig
from qwen_edge.errors import ConfigError, ModelNotFoundError
from qwen_edge.quant_types import FILE_TYPE_ALIASES, FILE_TYPES, file_type

__all__ = [
    "MODELS",
    "CatalogModel",
    "ModelKind",
    "ModelName",
    "PublishedFile",
    "Shape",
    "Thinking",
    "WheelParts",
    "find_model",
    "names_of",
    "nearest_model",
    "normalised",
    "parse_model_name",
    "recommended_sampling",
    "recommended_sampling_for",
]

MODELS: dict[str, CatalogModel] = {row.name: row for row in ROWS}

_SEPARATORS = re.compile(r"[-_:\s]+")
# What people copy from a browser or another tool in front of `owner/name`.
_HOST = re.compile(
    r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.cn/models|modelscope\.ai/models)/|^hf:(?://)?",
    re.IGNORECASE,
)
# Source: huggingface_hub's validate_repo_id: letters, digits, "-", "_" and ".", 96 in each part.
_REPOSITORY = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,95})/[A-Za-z0-9](?:[\w.-]{0,95})", re.ASCII)
_TYPE_NAMES = {name.lower() for name in (*FILE_TYPES, *FILE_TYPE_ALIASES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """What a person meant who named a model.

    At least one of model, path and hub_id is set; a path is alone.

    Attributes:
        model: The row of the catalog, None for a file or a repository that has none.
        path: A local file or folder, there or not.
        hub_id: The repository asked for, `owner/name` as its owner spells it where that is known; None where a
            model was asked for by its name.
        type_name: The quantization asked for, a key of FILE_TYPES; None leaves the choice open.
    """

    model: CatalogModel | None = None
    path: Path | None = None
    hub_id: str | None = None
    type_name: str | None = None


def normalised(name: str) -> str:
    """Return a name in the form in which names are compared: lower case, one "-" for each run of separators."""
    return _SEPARATORS.sub("-", name.lower()).strip("-")


def names_of(model: CatalogModel) -> frozenset[str]:
    """Return all that means this model, normalised, repositories with their owner left out."""
    plain = (model.name, model.title, *model.aliases)
    return frozenset(map(normalised, (*plain, *(row.partition("/")[2] for row in model.repositories))))


_BY_NAME = {name: row for row in ROWS for name in names_of(row)}
_BY_REPOSITORY = {normalised(name): (row, name) for row in ROWS for name in row.repositories}


def find_model(name: str) -> CatalogModel:
    """Return the model of that name, alias or repository; case and separators do not matter.

    Raises:
        ModelNotFoundError: No such name; offers the nearest.
    """
    wanted = normalised(name)
    if wanted in _BY_REPOSITORY:
        return _BY_REPOSITORY[wanted][0]
    if wanted in _BY_NAME:
        return _BY_NAME[wanted]
    near = nearest_model(name)
    raise ModelNotFoundError(
        f"{name!r} is neither a file nor a known model",
        hint=(f"Did you mean {near.name}? " if near else "")
        + "All names: qwen-edge list. A repository on a hub is named owner/name.",
    )


def nearest_model(name: str) -> CatalogModel | None:
    """Return the model whose name is most like this one, None when none is much like it."""
    near = difflib.get_close_matches(normalised(name), _BY_NAME, n=1)
    return _BY_NAME[near[0]] if near else None


def parse_model_name(text: str) -> ModelName:
    """Return what a name means: a path, a model of the catalog, or a repository.

    A file or folder of that name comes first, then the catalog. The type follows "@", or ":" as in other tools:
    `qwen3-0.6b@q4_k_m`, `Qwen/Qwen3-0.6B-GGUF:Q8_0`. With an owner, only that owner's repository is meant.

    Args:
        text: As typed: `qwen3:0.6b`, `Qwen3 0.6B`, `Qwen/Qwen3-0.6B`, a hub's address, `./model.gguf`.

    Raises:
        ModelNotFoundError: None of these; offers the nearest name.
        ConfigError: The type after "@" is unknown; offers the nearest.
    """
    text = text.strip()
    path = _as_path(text)
    if text and os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that is too long
        return ModelName(path=path)
    bare = _HOST.sub("", text).rstrip("/")
    is_address = bare != text.rstrip("/")
    if not is_address and _looks_like_path(text):
        return ModelName(path=path)
    name, type_name = _split_type(bare)
    if known := _BY_REPOSITORY.get(normalised(name)):
        return ModelName(model=known[0], hub_id=known[1], type_name=type_name)
    if _REPOSITORY.fullmatch(name):
        return ModelName(hub_id=name, type_name=type_name)
    if "/" in name and not is_address:
        return ModelName(path=path)
    return ModelName(model=find_model(name), type_name=type_name)


def _as_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # no such user, or no name that a user can have
        return Path(text)


def _looks_like_path(text: str) -> bool:
    starts = (".", "~", "/", os.sep)
    return (
        text.lower().endswith((".gguf", ".onnx"))
        or text.startswith(starts)
        or "\\" in text
        or text.count("/") > 1
    )


def _split_type(text: str) -> tuple[str, str | None]:
    name, at, wanted = text.rpartition("@")
    if at:
        if not name.strip():
            raise ConfigError(f"{text!r} names no model before the @", hint="As in qwen3-0.6b@q4_k_m.")
        return name.strip(), file_type(wanted.strip()).name
    name, colon, wanted = text.rpartition(":")
    if colon and wanted.lower().replace("-", "_") in _TYPE_NAMES:
        return name, file_type(wanted).name
    return text, None


def recommended_sampling(architecture: str, *, thinking: bool, name: str = "") -> SamplingConfig:
    """Return the sampling that a model's authors recommend for a mode.

    Args:
        architecture: general.architecture of the file; decides where the name is not in the catalog.
        thinking: Whether the reply begins with a thought. Qwen advises against greedy decoding then: it loops.
        name: general.name of the file.
    """
    if model := _BY_NAME.get(normalised(name)):
        return recommended_sampling_for(model, thinking=thinking)
    return _architecture_sampling(architecture, thinking=thinking)


def _architecture_sampling(architecture: str, *, thinking: bool) -> SamplingConfig:
    if architecture == "qwen2":
        return QWEN2_DIRECT
    return QWEN3_THINKING if thinking else QWEN3_DIRECT


def recommended_sampling_for(model: CatalogModel, *, thinking: bool) -> SamplingConfig:
    """Return the sampling that a model's authors recommend, that of its only mode where it has one.

    Args:
        model: A row of the catalog.
        thinking: Whether the reply begins with a thought.
    """
    wanted, other = model.sampling_thinking, model.sampling_direct
    if not thinking:
        wanted, other = other, wanted
    return wanted or other or _architecture_sampling(model.architecture, thinking=thinking)
