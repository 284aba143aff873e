"""ONNX Runtime: the only module that imports it. A loaded graph, and buffers bound to it.

Keys and values are given to the graph as input and output at once, so that a call writes the new ones in place and copies
none. Calls give up the interpreter lock; several bindings of one graph may run at once.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge import device
from qwen_edge.engines.onnx_folder import POSITIONS
from qwen_edge.errors import (
    ClosedError,
    ConfigError,
    FormatError,
    MissingExtraError,
    NativeError,
    UnsupportedError,
)

CPU = "CPUExecutionProvider"
# Short names; what brings a provider. Source: "Execution Providers" in ONNX Runtime's documentation.
_PROVIDERS = {
    "cpu": (CPU, "onnxruntime"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime (its wheels for macOS)"),
    "xnnpack": ("XnnpackExecutionProvider", "onnxruntime, built with --use_xnnpack"),
}
_TESTED = ("cpu", "openvino")
# Of ONNX Runtime's severities the last, "fatal": what goes wrong is raised too, and stderr is the application's.
_SILENT = 4
# What its messages say of a file that is newer than it is: operators, the form of the file, a kernel for a type.
_TOO_NEW = ("official support for domain", "Unsupported model IR version", "NOT_IMPLEMENTED")


class UntestedProviderWarning(UserWarning):
    """A provider that this project does not test on."""


@functools.cache
def _runtime() -> ModuleType:
    """Load ONNX Runtime.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "running an ONNX model") from error
    onnxruntime.set_default_logger_severity(_SILENT)
    onnxruntime.disable_telemetry_events()
    module: ModuleType = onnxruntime
    return module


def version() -> str:
    """Return ONNX Runtime's version and the commit it was built from."""
    return f"{_runtime().__version__} {_runtime().get_build_info()}"


def provider_name(provider: str) -> str:
    """Return ONNX Runtime's name of a provider, after checking that it is there.

    Args:
        provider: A short name such as "openvino", or ONNX Runtime's own.

    Raises:
        ConfigError: The installed ONNX Runtime does not have it.
    """
    name, package = _PROVIDERS.get(provider.lower(), (provider, ""))
    available = _runtime().get_available_providers()
    if name not in available:
        package = package or next((pip for known, pip in _PROVIDERS.values() if known == name), "")
        here = ", ".join(available)
        near = difflib.get_close_matches(provider.lower(), _PROVIDERS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"the installed ONNX Runtime has no provider {provider!r}; it has {here}",
            hint=f"It comes with the package {package}, in the place of onnxruntime."
            if package
            else f"{meant}Known by name: {', '.join(_PROVIDERS)}.",
        )
    if provider.lower() not in _TESTED and name != CPU:
        warnings.warn(
            f"the provider {name} is not tested with qwen-edge", UntestedProviderWarning, stacklevel=4
        )
    return name


@dataclass(frozen=True, slots=True)
class CacheInput:
    """A cache of keys or of values that the graph takes and gives back.

    Attributes:
        name: Of the input.
        n_heads: Key and value heads.
        head_dim: Width of each.
    """

    name: str
    n_heads: int
    head_dim: int

    @property
    def output(self) -> str:
        """Name of the output."""
        return self.name.replace("past_key_values", "present", 1)


class Call:
    """One call of a graph, which another thread may end."""

    def __init__(self) -> None:
        self.options = _runtime().RunOptions()

    def stop(self) -> None:
        """End it at the next node of the graph."""
        self.options.terminate = True


class OnnxGraph:
    """A graph with its weights in memory."""

    def __init__(self, path: Path, *, n_threads: int, provider: str = "cpu") -> None:
        """Load a graph.

        Args:
            path: A file whose inputs and outputs are known to be there.
            n_threads: Threads that share the work of one call.
            provider: See provider_name().

        Raises:
            FormatError: ONNX Runtime refuses the file.
            UnsupportedError: It is newer than ONNX Runtime.
            ConfigError: There is no such provider.
            MissingExtraError: ONNX Runtime is not installed.
        """
        runtime = _runtime()
        name = provider_name(provider)
        options = runtime.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # made for equal shapes: every call has its own
        # Threads that spin for long take the cores away from whatever else runs. Measured on two busy cores, 0.5B in int4:
        # decoding at 16.7 to 17.9 tokens/s, with the default at 12.5 to 13.9.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = runtime.InferenceSession(
                str(path),
                options,
                providers=[name] if name == CPU else [name, CPU],
                # It prints what is wrong with a damaged file, and tries the same again.
                enable_fallback=int(name != CPU),
            )
        except Exception as error:  # its exceptions have no common base
            raise _load_error(path, str(error).strip(), runtime.__version__) from error
        self._session: Any = session
        logits = next(output for output in session.get_outputs() if output.name == "logits")
        inputs = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
        try:
            self.n_vocab = int(logits.shape[2])
            self.caches = tuple(
                CacheInput(each.name, int(each.shape[1]), int(each.shape[3])) for each in inputs
            )
        except (TypeError, ValueError, IndexError) as error:
            raise FormatError(
                f"{path}: the shapes of its caches or logits are not stated: {error}"
            ) from error
        if wrong := [each.name for each in inputs if each.type != "tensor(float)"]:
            raise UnsupportedError(f"{path}: the cache {wrong[0]} is not of float32")
        self.nodes = _nodes_by_provider(session)

    def bind(self, caches: Sequence[NDArray[np.float32]]) -> Binding:
        """Give caches to the graph, one for each of `caches`.

        Args:
            caches: float32 [rows, heads, capacity, head_dim] each, contiguous; written in place by each run.

        Raises:
            ClosedError: After close().
        """
        session = self._session
        if session is None:
            raise ClosedError("the model is closed")
        return Binding(session, self.caches, caches)

    def close(self) -> None:
        """Let go of the weights; they are freed when no binding holds them."""
        self._session = None
        # A thousand models of 23 MB, one after the other, left 830 MB behind without.
        device.return_freed_memory()


class Binding:
    """Buffers that stay the same from call to call."""

    def __init__(
        self, session: Any, inputs: Sequence[CacheInput], caches: Sequence[NDArray[np.float32]]
    ) -> None:
        """Made by OnnxGraph.bind()."""
        self._session = session
        self._bound = session.io_binding()
        self._caches = tuple(caches)  # only their addresses are bound
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        for each, cache in zip(inputs, caches, strict=True):
            assert cache.flags.c_contiguous, "Bug: the address of a cache says where all of it is"
            self._put(self._bound.bind_input, each.name, cache)
            self._put(self._bound.bind_output, each.output, cache)

    def _put(self, bind: Any, name: str, values: NDArray[Any]) -> None:
        """Bind an array, unless the one bound last has the same place and shape."""
        place = values.ctypes.data, values.shape
        if self._places.get(name) != place:
            bind(name, "cpu", 0, values.dtype.type, values.shape, place[0])
            self._places[name] = place

    def run(
        self,
        tokens: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
        logits: NDArray[np.float32],
        call: Call,
    ) -> None:
        """Evaluate tokens.

        Args:
            tokens: int64 [rows, n].
            mask: int64 [rows, longest], ones for the tokens of each row, the new ones included.
            positions: Of `tokens`, those whose logits are wanted: int64 [k]; k may be 0.
            logits: float32 [rows, k, n_vocab], receives them.
            call: May be stopped.

        Raises:
            NativeError: ONNX Runtime failed, or the call was stopped. Of the caches, what is behind the tokens that
                were there is undefined.
        """
        self._put(self._bound.bind_input, "input_ids", tokens)
        self._put(self._bound.bind_input, "attention_mask", mask)
        self._put(self._bound.bind_input, POSITIONS, positions)
        self._put(self._bound.bind_output, "logits", logits)
        try:
            self._session.run_with_iobinding(self._bound, call.options)
        except Exception as error:  # its exceptions have no common base
            raise NativeError(f"ONNX Runtime failed: {str(error).strip()}") from error


def _load_error(path: Path, message: str, installed: str) -> Exception:
    if any(part in message for part in _TOO_NEW):
        return UnsupportedError(
            f"{path} needs more than ONNX Runtime {installed} can: {message}",
            hint="Install a newer one: pip install -U onnxruntime",
        )
    return FormatError(
        f"ONNX Runtime {installed} cannot load {path}: {message}",
        hint="A copy that was cut off is the usual cause; fetch or export the folder again.",
    )


def _nodes_by_provider(session: Any) -> dict[str, int]:
    """Return how many nodes each provider runs; of a version that does not tell, 0 for each that is registered."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return dict.fromkeys(session.get_providers(), 0)
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)
