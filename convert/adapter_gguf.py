"""A PEFT adapter as a GGUF file of its own, which llama.cpp applies beside the model.

Source: `convert_lora_to_gguf.py` and `src/llama-adapter.cpp` in llama.cpp.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_edge.convert.adapter import Adapter, LoraPair, load_matrix, open_adapter
from qwen_edge.convert.checkpoint import checkpoint_name
from qwen_edge.convert.dtypes import ITEM_BYTES, encode
from qwen_edge.convert.gguf_writer import TENSOR_TYPES, pad
from qwen_edge.convert.json_files import read_object
from qwen_edge.convert.qwen import QwenConfig, parse_config
from qwen_edge.convert.safetensors_file import TensorEntry
from qwen_edge.errors import ConfigError, MissingExtraError, ModelNotFoundError, UnsupportedError
from qwen_edge.files import atomic_path

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", "convert", "converting an adapter") from error

AdapterType = Literal["f32", "f16"]
ADAPTER_TYPES: tuple[AdapterType, ...] = ("f32", "f16")


@dataclass(frozen=True)
class AdapterReport:
    """What the conversion of an adapter made.

    Attributes:
        path: The GGUF file.
        architecture: "qwen2" or "qwen3", of the model it is for.
        dtype: The type of its matrices.
        tensor_count: Tensors in the file, two for each matrix of the model that is changed.
        size_bytes: Its length.
        parameter_count: Weights in it.
        alpha: llama.cpp multiplies each change by alpha / rank.
        duration_s: Wall-clock time.
    """

    path: Path
    architecture: str
    dtype: str
    tensor_count: int
    size_bytes: int
    parameter_count: int
    alpha: float
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {**asdict(self), "path": str(self.path)}


def convert_adapter(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: AdapterType = "f32",
) -> AdapterReport:
    """Convert a PEFT adapter to llama.cpp's GGUF form.

    The target is written under a temporary name and appears when it is complete; an existing file is replaced.

    Args:
        adapter: The folder in which PEFT saved it.
        base: The checkpoint it was trained on; only its config.json is read.
        target: The GGUF file to make.
        dtype: Type of the matrices: "f32" or "f16".

    Raises:
        ModelNotFoundError: There is no adapter, or no checkpoint.
        CheckpointError: The adapter is incomplete, damaged, or of another model.
        UnsupportedError: It is no plain LoRA (DoRA among others), or a weight does not fit into F16.
        ConfigError: `dtype` is another, or `target` is the adapter's own file.
        OSError: A file cannot be read or written.
    """
    started_s = time.monotonic()
    if dtype not in ADAPTER_TYPES:
        raise ConfigError(f"dtype of an adapter is {dtype!r}, expected one of {', '.join(ADAPTER_TYPES)}")
    target = Path(target)
    config = _read_base(Path(base))
    opened = open_adapter(adapter, config)
    if opened.config.uses_dora:
        raise UnsupportedError(
            f"{opened.folder} is a DoRA adapter, which llama.cpp cannot apply beside a model",
            hint=f"Merge it instead: qwen-edge convert {base} --adapter {opened.folder}",
        )
    if target.is_dir() or target.resolve() == opened.weights_file.resolve():
        raise ConfigError(
            f"the target {target} is a folder or the adapter's own file",
            hint="Name a file, such as adapter.gguf",
        )
    with atomic_path(target) as part:
        _write(part, opened, config, dtype)
    return AdapterReport(
        path=target,
        architecture=config.architecture,
        dtype=dtype,
        tensor_count=2 * len(opened.pairs),
        size_bytes=target.stat().st_size,
        parameter_count=sum(pair.a.n_elements + pair.b.n_elements for pair in opened.pairs),
        alpha=opened.config.alpha,
        duration_s=time.monotonic() - started_s,
    )


def _read_base(base: Path) -> QwenConfig:
    if not base.exists():
        raise ModelNotFoundError(
            f"there is no checkpoint at {str(base)!r}",
            hint="Give the folder of the model that the adapter was trained on, with its config.json.",
        )
    path = (base if base.is_dir() else base.parent) / "config.json"
    return parse_config(read_object(path), str(path))


def _write(path: Path, adapter: Adapter, config: QwenConfig, dtype: AdapterType) -> None:
    writer = gguf.GGUFWriter(path, config.architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_name(checkpoint_name(adapter.folder))
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.config.alpha)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for pair in adapter.pairs:
            for suffix, entry in (("lora_a", pair.a), ("lora_b", pair.b)):
                n_bytes = entry.n_elements * ITEM_BYTES[dtype]
                # The third is the type of a numpy array, and there is none.
                writer.add_tensor_info(
                    f"{pair.target.gguf_name}.{suffix}",
                    entry.shape,
                    None,
                    n_bytes,
                    raw_dtype=TENSOR_TYPES[dtype],
                )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with path.open("ab") as file:
        pad(file)
        for pair in adapter.pairs:
            for encoded in _encoded(pair, adapter.config.alpha, dtype):
                file.write(encoded)
                pad(file)


def _encoded(pair: LoraPair, alpha: float, dtype: AdapterType) -> Iterator[bytes]:
    """Yield A and B in the file's type.

    llama.cpp has one alpha for the file and multiplies by alpha / rank, the rank being that of each tensor. Where the
    config gives a matrix another factor (patterns, rsLoRA), B carries the ratio.

    Source: `llama_adapter_lora_weight::get_scale` in llama.cpp.
    """
    ratio = pair.scaling / (alpha / pair.rank)
    for entry, factor in ((pair.a, 1.0), (pair.b, ratio)):
        yield _encode(entry, factor, dtype)


def _encode(entry: TensorEntry, factor: float, dtype: AdapterType) -> bytes:
    values = load_matrix(entry)
    if factor != 1.0:
        values = values * np.float32(factor)
    try:
        return encode(values.tobytes(), "F32", dtype)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{entry.name!r} in {entry.path}: {error.message}", hint="Write the adapter as f32."
        ) from error
