"""An exported folder: which files are in it, and what they say of the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.catalog_types import Shape
from qwen_edge.engines.onnx_file import OnnxFile, read_onnx_file
from qwen_edge.errors import FormatError, ModelNotFoundError, UnsupportedError
from qwen_edge.files import reading
from qwen_edge.manifest import read_manifest

GRAPH_NAME = "model.onnx"
# Key of the graph's metadata under which qwen-edge's exporter writes its facts, and the form of them known here.
FACTS_KEY, FACTS_FORMAT = "qwen_edge", 1
POSITIONS = "logits_positions"
_EXPORT = "Export its checkpoint with qwen-edge: qwen-edge convert CHECKPOINT --to onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFolder:
    """What is known before a graph is loaded.

    Attributes:
        folder: Where it all lies.
        graph: The graph's own facts.
        architecture: "qwen3" or "qwen2".
        name: The repository it was made from without its owner; else the folder's name.
        n_ctx_train: Positions for which the graph has angles.
        shape: Sizes of the model.
        n_params: Weights, a tied head counted once.
        weights_bytes: Bytes of the files with weights.
        chat_template: Jinja source, "" without one.
        special_texts: "bos_token" and "eos_token", where the tokenizer has them.
        end_tokens: Ids and texts of tokens that end a reply.
        precision: What the exporter wrote down of the weights' types.
    """

    folder: Path
    graph: OnnxFile
    architecture: str
    name: str
    n_ctx_train: int
    shape: Shape
    n_params: int
    weights_bytes: int
    chat_template: str
    special_texts: dict[str, str]
    end_tokens: tuple[int | str, ...]
    precision: dict[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that decide what the model computes."""
        return (self.graph.path, *self.graph.data_files)

    @property
    def tokenizer_path(self) -> Path:
        """tokenizer.json."""
        return self.folder / "tokenizer.json"


def is_onnx(path: Path) -> bool:
    """Return whether a path is an ONNX file, by its name, or a folder with a graph in it."""
    return path.suffix == ".onnx" or (path / GRAPH_NAME).is_file()


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the files that make up a model: of an ONNX folder graph and weights, else the path itself.

    Raises:
        ModelNotFoundError: Nothing is there.
        FormatError: The graph is damaged.
    """
    graph_path = path / GRAPH_NAME if path.is_dir() else path
    if not graph_path.is_file():
        raise ModelNotFoundError(f"no file {graph_path}")
    if not is_onnx(path):
        return (path,)
    graph = read_onnx_file(graph_path)
    return (graph.path, *graph.data_files)


def read_folder(path: Path) -> OnnxFolder:
    """Read an exported folder.

    Args:
        path: The folder, or the graph in it.

    Raises:
        ModelNotFoundError: The graph or the tokenizer is not there.
        FormatError: A file is damaged, or the weights are cut off.
        UnsupportedError: The graph was made by another exporter, or by another version of this one.
    """
    graph_path = path / GRAPH_NAME if path.is_dir() else path
    if not graph_path.is_file():
        raise ModelNotFoundError(f"no file {graph_path}", hint=_EXPORT)
    folder = graph_path.parent
    for name in ("tokenizer.json", "config.json"):
        if not (folder / name).is_file():
            raise ModelNotFoundError(
                f"{folder} has no {name}", hint="Copy it from the checkpoint, or export the folder again."
            )
    graph = read_onnx_file(graph_path)
    facts = _checked_facts(graph)
    config = _read_object(folder / "config.json")
    tokenizer_config = _read_object(folder / "tokenizer_config.json")
    shape = _shape(folder / "config.json", config, facts)
    special_texts = _special_texts(folder, tokenizer_config, config)
    generation = _read_object(folder / "generation_config.json")
    return OnnxFolder(
        folder=folder,
        graph=graph,
        architecture=facts["architecture"],
        name=_name_of(folder),
        n_ctx_train=facts["n_ctx_train"],
        shape=shape,
        n_params=shape.n_weights,
        weights_bytes=sum(file.stat().st_size for file in graph.data_files),
        chat_template=_chat_template(folder, tokenizer_config),
        special_texts=special_texts,
        end_tokens=(
            *_ends(generation),
            *([special_texts["eos_token"]] if "eos_token" in special_texts else []),
        ),
        precision={name: facts.get(name) for name in ("weights", "head", "embedding", "block_size")},
    )


def _checked_facts(graph: OnnxFile) -> dict[str, Any]:
    """Return the exporter's facts, after checking that the graph is one that can be driven here."""
    missing = [
        f"the input {name!r}"
        for name in ("input_ids", "attention_mask", POSITIONS)
        if name not in graph.inputs
    ]
    missing += ["the output 'logits'"] if "logits" not in graph.outputs else []
    caches = [name for name in graph.inputs if name.startswith("past_key_values.")]
    missing += [] if caches else ["inputs 'past_key_values.N.key' and '.value' for a KV cache"]
    missing += [
        f"the output {output!r}"
        for output in (name.replace("past_key_values", "present", 1) for name in caches)
        if output not in graph.outputs
    ]
    missing += [] if FACTS_KEY in graph.metadata else [f"the metadata {FACTS_KEY!r} with the model's facts"]
    if missing:
        raise UnsupportedError(
            f"{graph.path} was not exported by qwen-edge: it lacks {', '.join(missing)}", hint=_EXPORT
        )
    try:
        facts = json.loads(graph.metadata[FACTS_KEY])
        is_known = facts["format"] == FACTS_FORMAT and facts["form"] == "fused"
        if not isinstance(facts["architecture"], str):
            raise TypeError(f"architecture is {facts['architecture']!r}")
        if not isinstance(facts["n_ctx_train"], int) or facts["n_ctx_train"] < 1:
            raise ValueError(f"n_ctx_train is {facts['n_ctx_train']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(
            f"{graph.path}: its metadata {FACTS_KEY!r} is damaged: {error}", hint=_EXPORT
        ) from error
    if not is_known:
        raise UnsupportedError(
            f"{graph.path} is in format {facts['format']}, form {facts['form']!r}; this version runs format "
            f"{FACTS_FORMAT}, form 'fused'",
            hint=f"{_EXPORT}, without --opset-only: plain graphs are for other runtimes.",
        )
    checked: dict[str, Any] = facts
    return checked


def _shape(path: Path, config: dict[str, Any], facts: dict[str, Any]) -> Shape:
    try:
        n_heads = _size(config["num_attention_heads"])
        return Shape(
            n_layers=_size(config["num_hidden_layers"]),
            hidden_size=_size(config["hidden_size"]),
            ffn_size=_size(config["intermediate_size"]),
            n_heads=n_heads,
            n_kv_heads=_size(config.get("num_key_value_heads") or n_heads),
            head_dim=_size(config.get("head_dim") or config["hidden_size"] // n_heads),
            vocab_size=_size(config["vocab_size"]),
            is_tied=bool(facts.get("is_tied")),
            has_qkv_bias=facts["architecture"] == "qwen2",
            has_qk_norm=facts["architecture"] == "qwen3",
        )
    except KeyError as error:
        raise FormatError(f"{path} lacks {error}", hint="Export the folder again.") from error
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error}", hint="Export the folder again.") from error


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{str(value)[:40]!r} is no size")
    return value


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise FormatError(f"{file} is no UTF-8 text: {error}", hint="Export the folder again.") from error
    template = tokenizer_config.get("chat_template")
    return template if isinstance(template, str) else ""


def _special_texts(folder: Path, tokenizer_config: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """Return what the template is given: as tokenizer_config.json spells it, else by the id in config.json."""
    texts: dict[str, str] = {}
    for kind in ("bos", "eos"):
        value = tokenizer_config.get(f"{kind}_token")
        text = value.get("content") if isinstance(value, dict) else value
        token = config.get(f"{kind}_token_id")
        if not text and isinstance(token, int):
            text = _added_texts(folder).get(token)
        if isinstance(text, str) and text:
            texts[f"{kind}_token"] = text
    return texts


def _added_texts(folder: Path) -> dict[int, str]:
    added = _read_object(folder / "tokenizer.json").get("added_tokens")
    entries = added if isinstance(added, list) else []
    return {
        entry["id"]: entry["content"]
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), int)
        and isinstance(entry.get("content"), str)
    }


def _ends(generation: dict[str, Any]) -> list[int]:
    """Return the end tokens of generation_config.json: one, several, or none."""
    value = generation.get("eos_token_id")
    tokens = value if isinstance(value, list) else [value]
    return [token for token in tokens if isinstance(token, int)]


def _name_of(folder: Path) -> str:
    manifest = read_manifest(folder)
    location = manifest.origin.location if manifest is not None else ""
    return location.rpartition("/")[2] or folder.resolve().name


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; {} where there is no such file.

    Raises:
        FormatError: It is something else.
    """
    if not path.is_file():
        return {}
    try:
        with reading(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}", hint="Export the folder again.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no JSON object", hint="Export the folder again.")
    return value
