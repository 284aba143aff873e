"""A checkpoint becomes a folder that ONNX Runtime, onnxruntime-genai and this project's engine run.

::

    model.onnx             the graph
    model.genai.onnx       the same for onnxruntime-genai, with logits of the last token only
    model.onnx.data        the weights
    tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, generation_config.json
    genai_config.json      its configuration
    manifest.json          what it was made from, with digests
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_edge.config import AdapterLike, adapter_configs
from qwen_edge.convert.adapter_merge import apply_adapters
from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.inputs import input_records
from qwen_edge.convert.json_files import read_object_if_present
from qwen_edge.convert.matching import DroppedTensor, match_tensors
from qwen_edge.convert.onnx_data import DATA_NAME, DataFile
from qwen_edge.convert.onnx_genai import CONFIG_NAME, GENAI_MODEL_NAME, genai_config
from qwen_edge.convert.onnx_graph import build_graph
from qwen_edge.convert.onnx_plain import build_plain_graph
from qwen_edge.convert.onnx_precision import GraphForm, OnnxPrecision
from qwen_edge.convert.onnx_source import is_onnx_folder, open_source
from qwen_edge.convert.onnx_weights import Importance, plan_weights
from qwen_edge.convert.qwen import QwenConfig, parse_config
from qwen_edge.convert.vocabulary import Vocabulary, read_vocabulary
from qwen_edge.engines.onnx_folder import GRAPH_NAME
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.files import atomic_folder, check_free_space
from qwen_edge.hub import origin_of
from qwen_edge.manifest import (
    FileRecord,
    Manifest,
    Origin,
    read_manifest,
    records_of,
    tool_versions,
    write_manifest,
)

_COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
# The graph and the tokenizer's files stay below this.
_SIDE_ALLOWANCE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class OnnxReport:
    """What an export made.

    Attributes:
        path: The folder.
        architecture: "qwen2" or "qwen3".
        precision: Types of its weights.
        form: Operators of its graph.
        size_bytes: Graph and weights.
        parameter_count: Weights, a tied head counted once.
        bits_per_weight: Of graph and weights together.
        dropped: Tensors of the checkpoint that are not in it.
        duration_s: Wall-clock time.
        adapters: Folders of the adapters that were merged.
    """

    path: Path
    architecture: str
    precision: OnnxPrecision
    form: GraphForm
    size_bytes: int
    parameter_count: int
    bits_per_weight: float
    dropped: tuple[DroppedTensor, ...]
    duration_s: float
    adapters: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            **asdict(self),
            "path": str(self.path),
            "adapters": [str(path) for path in self.adapters],
        }


def export_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    precision: OnnxPrecision | None = None,
    form: GraphForm | None = None,
    adapters: Sequence[AdapterLike] = (),
    importance: Importance | None = None,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> OnnxReport:
    """Export a Qwen3, Qwen2 or Qwen2.5 checkpoint to ONNX.

    Weights are read, rounded and written in pieces: peak memory does not grow with the model. The folder is made under a
    temporary name and appears when it is complete.

    Args:
        source: A checkpoint folder, or one .safetensors file with config.json and tokenizer.json beside it; or a folder
            that was exported as F32 or F16.
        target: The folder to make.
        precision: Types of the weights; F32 by default.
        form: Operators of the graph; ONNX Runtime's fused ones by default.
        adapters: PEFT adapters to merge, see `apply_adapters`.
        importance: For scales that are searched, see OnnxPrecision.rounding.
        replace: Replace an exported folder that is there already.
        progress: Called with (done_bytes, total_bytes) of the data file as it is written.

    Raises:
        ModelNotFoundError: There is nothing at `source`, or no adapter where one is named.
        CheckpointError: The checkpoint is incomplete, damaged, or contradicts its config.json; or an adapter is.
        UnsupportedError: It is well formed, and another architecture or kind of model than can be exported.
        ConfigError: `target` is there already, or holds something else.
        WriteError: The disk is full, the target cannot be written, or another run writes it.
        OSError: A file cannot be read.
    """
    started_s = time.monotonic()
    form = form or GraphForm()
    precision = form.precision_of(precision or OnnxPrecision())
    target = Path(target)
    _check_target(target, replace)
    checkpoint = open_source(source)
    adapters = adapter_configs(adapters)
    checkpoint = apply_adapters(checkpoint, adapters) if adapters else checkpoint
    config = parse_config(checkpoint.config, str(checkpoint.folder / "config.json"))
    if config.n_labels:
        raise UnsupportedError(
            f"{checkpoint.folder} is a classifier; language models can be exported to ONNX",
            hint=f"Convert it to GGUF: qwen-edge convert {checkpoint.folder}",
        )
    found, dropped = match_tensors(checkpoint, config)
    vocabulary = read_vocabulary(checkpoint.folder, config.vocab_size, checkpoint.config)
    data = DataFile()
    tensors = {expected.name: entry for expected, entry in found}
    weights = plan_weights(config, tensors, precision, data, importance, is_plain=form.plain)
    if form.plain:
        model = build_plain_graph(config, weights, precision, form)
    else:
        model = build_graph(config, weights, precision)
    needed_bytes = data.n_bytes + _SIDE_ALLOWANCE_BYTES
    check_free_space(target, needed_bytes)
    graph = model.SerializeToString(deterministic=True)
    with atomic_folder(target, needed_bytes=needed_bytes) as part:
        (part / GRAPH_NAME).write_bytes(graph)
        if not form.plain:
            last = build_graph(config, weights, precision, only_last=True)
            (part / GENAI_MODEL_NAME).write_bytes(last.SerializeToString(deterministic=True))
        data.write(part / DATA_NAME, progress)
        _write_side_files(part, checkpoint, config, vocabulary, form)
        settings = {
            "precision": asdict(precision),
            "form": asdict(form),
            "has_importance": importance is not None,
            "adapters": [{"name": each.path.name, "scale": each.scale} for each in adapters],
        }
        files = records_of((path for path in part.iterdir()), part)
        manifest = Manifest(
            action="convert",
            artefact=FileRecord.of(part / DATA_NAME),
            origin=_origin(checkpoint.folder),
            inputs=input_records(checkpoint, [each.path for each in adapters]),
            settings={**settings, "files": [asdict(record) for record in files]},
            tools=tool_versions("onnx", "numpy"),
        )
        write_manifest(part, manifest)
    size_bytes = len(graph) + data.n_bytes
    parameter_count = sum(entry.n_elements for _, entry in found)
    return OnnxReport(
        path=target,
        architecture=config.architecture,
        precision=precision,
        form=form,
        size_bytes=size_bytes,
        parameter_count=parameter_count,
        bits_per_weight=size_bytes * 8 / parameter_count,
        dropped=tuple(dropped),
        duration_s=time.monotonic() - started_s,
        adapters=tuple(each.path for each in adapters),
    )


def _origin(folder: Path) -> Origin:
    """Return where a checkpoint comes from; an exported folder hands on what its own manifest says."""
    manifest = read_manifest(folder) if is_onnx_folder(folder) else None
    if manifest is None or manifest.artefact is None:
        return origin_of(folder)
    is_whole = (folder / DATA_NAME).stat().st_size == manifest.artefact.size_bytes
    return manifest.origin if is_whole else origin_of(folder)


def _write_side_files(
    part: Path, checkpoint: Checkpoint, config: QwenConfig, vocabulary: Vocabulary, form: GraphForm
) -> None:
    for name in _COPIED:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, part / name)
    template = vocabulary.chat_template
    if isinstance(template, list):
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if template:
        (part / "chat_template.jinja").write_text(template, encoding="utf-8")
    if form.plain:
        return  # onnxruntime-genai is made for the other form
    generation = read_object_if_present(checkpoint.folder / "generation_config.json")
    document = genai_config(config, generation, vocabulary.special_ids)
    (part / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _check_target(target: Path, replace: bool) -> None:
    if target.is_file():
        raise ConfigError(f"the target {target} is a file; an ONNX model is a folder", hint="Name a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / GRAPH_NAME).is_file():
        raise ConfigError(
            f"the target {target} is a folder with other files in it",
            hint="Name a folder that is not there yet.",
        )
    if not replace:
        raise ConfigError(
            f"{target} exists already", hint="Replace it with --force, or name another folder with -o."
        )
