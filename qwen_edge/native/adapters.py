"""LoRA adapters in llama.cpp: checked before the library sees them, loaded for a model, set for a context.

The library frees a model's adapters with the model; whoever loads one here frees it before (see NativeModel).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_edge.errors import ConfigError, GGUFError, ModelNotFoundError, NativeError, UnsupportedError
from qwen_edge.gguf_header import GGUFHeader, TensorEntry, read_header
from qwen_edge.native import library

_SIDES = (".lora_a", ".lora_b")
# Products with other types abort the process: the CPU kernels have none for them.
_TENSOR_TYPES = ("F32", "F16", "BF16", "Q8_0")
_CONVERT_AGAIN = "Convert the adapter again: qwen-edge convert ADAPTER_DIR --base CHECKPOINT -o adapter.gguf"

# What llama.cpp says when an adapter was made for another model, in src/llama-adapter.cpp.
_WRONG_BASE_TEXTS = ("does not exist in base model", "has incorrect shape", "arch mismatch")


def check_adapter(path: Path) -> None:
    """Check that a file is an adapter that llama.cpp can take: on some others it ends the process.

    Raises:
        ModelNotFoundError: Nothing is there, or it is a folder.
        GGUFError: It is no GGUF file, no adapter, or damaged.
        UnsupportedError: It is one of a kind that llama.cpp cannot apply here.
    """
    if path.is_dir():
        raise ModelNotFoundError(
            f"{path} is a folder, not an adapter file",
            hint="A PEFT adapter becomes a file by: "
            f"qwen-edge convert {path} --base CHECKPOINT -o {path.name}.gguf",
        )
    if not path.exists():
        raise ModelNotFoundError(
            f"no adapter file {path}",
            hint="Check the path, or make the file with: qwen-edge convert ADAPTER_DIR --base CHECKPOINT",
        )
    if path.suffix == ".safetensors":
        raise GGUFError(f"{path} is a safetensors file, not a GGUF adapter", hint=_CONVERT_AGAIN)
    header = read_header(path)
    _check_metadata(header)
    names = {tensor.name for tensor in header.tensors}
    for tensor in header.tensors:
        _check_tensor(tensor, names, path)


def check_is_no_adapter(path: Path) -> None:
    """Explain why an adapter cannot be loaded as a model; says nothing of a file that cannot be read.

    Raises:
        GGUFError: It is an adapter.
    """
    try:
        kind = read_header(path).metadata.get("general.type")
    except (OSError, GGUFError, UnsupportedError):
        return
    if kind == "adapter":
        raise GGUFError(
            f"{path} is an adapter, not a model",
            hint=f'Load the model that it was trained on beside it: load("model.gguf", adapters=["{path}"]), or '
            f"qwen-edge run model.gguf PROMPT --adapter {path}",
        )


def load_adapter(api: Any, model: Any, path: Path) -> Any:
    """Load an adapter for a model.

    Args:
        api: llama.cpp's bindings.
        model: The model's native pointer.
        path: The file.

    Returns:
        The adapter's native pointer, to be freed before the model.

    Raises:
        ModelNotFoundError, GGUFError, UnsupportedError: As check_adapter().
        ConfigError: The adapter was made for another model.
    """
    check_adapter(path)
    library.clear_log()
    with library.interrupt_deferred():
        adapter = api.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        raise _refusal(path)
    if api.llama_adapter_get_alora_n_invocation_tokens(adapter):
        api.llama_adapter_lora_free(adapter)
        raise UnsupportedError(
            f"{path} is an activated LoRA (aLoRA), which acts only behind certain tokens",
            hint="Plain LoRA adapters can be loaded.",
        )
    return adapter


def set_adapters(api: Any, context: Any, adapters: Sequence[tuple[Any, float]]) -> None:
    """Let adapters act in a context.

    Args:
        api: llama.cpp's bindings.
        context: The context's native pointer.
        adapters: Native pointers, each with its scale; 0 switches one off.

    Raises:
        NativeError: llama.cpp refuses.
    """
    pointers = (api.llama_adapter_lora_p_ctypes * len(adapters))(*(adapter for adapter, _ in adapters))
    scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
    code = api.llama_set_adapters_lora(context, pointers, len(adapters), scales)
    if code != 0:
        raise NativeError(
            f"llama.cpp cannot set {len(adapters)} adapters: {library.last_errors() or f'code {code}'}"
        )


def _check_metadata(header: GGUFHeader) -> None:
    kind = header.metadata.get("general.type", "model")
    if kind != "adapter":
        raise GGUFError(
            f"{header.path} is no adapter: it holds a {kind}",
            hint=f'A model is loaded by its own path: load("{header.path}").',
        )
    if header.metadata.get("adapter.type") != "lora":
        raise UnsupportedError(
            f"{header.path}: the adapter's type is {header.metadata.get('adapter.type')!r}, supported is 'lora'"
        )
    alpha = header.metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not isinstance(header.metadata.get("general.architecture"), str):
        raise GGUFError(
            f"{header.path} does not say its architecture and alpha ({alpha!r})", hint=_CONVERT_AGAIN
        )


def _check_tensor(tensor: TensorEntry, names: set[str], path: Path) -> None:
    matrix, _, _ = tensor.name.rpartition(".lora_")
    if matrix == "token_embd.weight":
        # With a head that shares the embedding, as in all small Qwen models, llama.cpp multiplies by it the wrong
        # way round and aborts.
        raise UnsupportedError(
            f"{path} changes the embedding ({tensor.name}), which llama.cpp cannot do where the head shares it",
            hint="Train the adapter without the embedding, or merge it and convert the result.",
        )
    if not tensor.name.endswith(_SIDES) or not {matrix + side for side in _SIDES} <= names:
        raise GGUFError(
            f"{path}: {tensor.name!r} is no tensor of a pair .lora_a and .lora_b", hint=_CONVERT_AGAIN
        )
    if tensor.type_name not in _TENSOR_TYPES or len(tensor.shape) != 2:
        raise UnsupportedError(
            f"{path}: {tensor.name!r} is {tensor.type_name} of shape {list(tensor.shape)}; supported are matrices in "
            + ", ".join(_TENSOR_TYPES),
            hint=_CONVERT_AGAIN,
        )


def _refusal(path: Path) -> ConfigError | GGUFError:
    reason = library.last_errors() or "no reason given"
    if any(text in reason for text in _WRONG_BASE_TEXTS):
        return ConfigError(
            f"the adapter {path} does not fit the model: {reason.rpartition('lora adapter: ')[2]}",
            hint="Load the model that the adapter was trained on, or an adapter that was trained on this one.",
        )
    return GGUFError(f"llama.cpp cannot load the adapter {path}: {reason}", hint=_CONVERT_AGAIN)
