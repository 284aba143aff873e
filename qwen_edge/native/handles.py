"""Owners of llama.cpp's objects: Model and Context here, Sampler in sampler.py.

Lifetime: a context and a sampler hold their model strongly; a model knows its contexts weakly and frees them before
itself, and its adapters between the two. `close()` may be called any number of times, waits for the call in flight,
and later use is a ClosedError. Each native object is freed exactly once: by close(), else when its owner is collected,
else at exit, children first (weakref.finalize runs in reverse order of creation).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_edge import device
from qwen_edge.config import AdapterConfig, LoadConfig
from qwen_edge.errors import (
    CancelledError,
    ClosedError,
    ContextOverflowError,
    GGUFError,
    ModelNotFoundError,
    NativeError,
)
from qwen_edge.files import reading
from qwen_edge.gguf_header import read_header
from qwen_edge.native import adapters as native_adapters
from qwen_edge.native import library
from qwen_edge.native.affinity import PinnedThreads, calling_thread_kept
from qwen_edge.native.hugepages import huge_pages_for_new_memory
from qwen_edge.native.token_batch import TokenBatch
from qwen_edge.quant_types import TENSOR_TYPES

_GGUF_MAGIC = b"GGUF"

# Source: include/llama.h.
_LOAD_MODES = {"read": 0, "mmap": 1}
_FLASH_ATTENTION = {"off": 0, "on": 1}

# Measured on Qwen2.5-0.5B: with AMX 1 and 8 rows are slow, 16 to 512 equally fast; without AMX 1 is slow, 64 and 512
# are equal. Resident memory is the same with all.
_RESERVED_LOGITS_ROWS = 64


def check_is_gguf(path: Path) -> None:
    """Check that a path is a readable GGUF file, as far as its first bytes tell.

    Raises:
        ModelNotFoundError: Nothing is there, or it is a folder.
        GGUFError: It does not begin as a GGUF file.
        ReadError: It cannot be read.
    """
    if path.is_dir():
        raise ModelNotFoundError(
            f"{path} is a folder without model.onnx, and not a GGUF file",
            hint=f"If it is a checkpoint, convert it first: qwen-edge convert {path} -o model.gguf",
        )
    if not path.exists():
        raise ModelNotFoundError(
            f"no file {path}", hint="Check the path, or make the file with: qwen-edge convert"
        )
    if not path.is_file():
        raise ModelNotFoundError(
            f"{path} is a pipe or a device, not a file",
            hint="Write it to a file first: models are read in any order.",
        )
    with reading(path), path.open("rb") as file:
        magic = file.read(4)
    if magic != _GGUF_MAGIC:
        begins = f"it begins with {magic.decode('latin-1')!r}, not 'GGUF'" if magic else "it is empty"
        raise GGUFError(
            f"{path} is no GGUF file: {begins}",
            hint="A checkpoint (safetensors) is made one by: qwen-edge convert",
        )


class Closable(Protocol):
    """What a model closes before itself."""

    def close(self) -> None:
        """Free it, after the call in flight."""


class NativeModel:
    """Weights and vocabulary of one GGUF file in memory, and the adapters that act on them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        load_mode: str = "read",
        safe_kernels: bool = False,
        adapters: Sequence[AdapterConfig] = (),
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Load a file.

        Args:
            path: A GGUF file; of a split one the first part.
            load_mode: "read" or "mmap", see LoadConfig.
            safe_kernels: Keep weights as they are in the file: no repacking, no AMX.
            adapters: Act in all contexts of this model.
            on_progress: Is told the share that is read, from 0 to 1, before each tensor and at the end. What it raises ends
                the loading; what was read by then is freed.

        Raises:
            ModelNotFoundError: No such file.
            GGUFError: The file is damaged, truncated, or of an architecture llama.cpp does not know.
            ConfigError: An adapter was made for another model.
        """
        self.path = Path(path)
        check_is_gguf(self.path)
        self._api = api = library.api()
        # ctypes gives up the interpreter lock, so that another thread could free what a call works on. A context is made
        # inside, and has a lock of its own from then on; this one is never taken inside that.
        self.lock = threading.RLock()
        self._contexts: weakref.WeakSet[Closable] = weakref.WeakSet()
        params = api.llama_model_default_params()
        params.load_mode = _LOAD_MODES[load_mode]
        params.n_gpu_layers = 0
        params.use_extra_bufts = not safe_kernels
        stopped: list[BaseException] = []
        if on_progress is not None:
            params.progress_callback = _progress_callback(api, on_progress, stopped)
        library.clear_log()
        with library.interrupt_deferred(), huge_pages_for_new_memory():
            self._handle = _in_passing_thread(
                lambda: api.llama_model_load_from_file(os.fsencode(self.path), params)
            )
        if stopped:
            device.return_freed_memory()
            raise stopped[0]
        if not self._handle:
            reason = library.last_reason()
            native_adapters.check_is_no_adapter(self.path)
            read_header(self.path)  # where the file is damaged, this says better what and where
            raise GGUFError(
                f"llama.cpp cannot load {self.path}: {reason}",
                hint="Its header is whole. It was made for another program or another version of llama.cpp, or memory "
                "ran out: take another file of the model, or convert the checkpoint.",
            )
        self._vocab = api.llama_model_get_vocab(self._handle)
        # The finalizer gets the list itself: it frees what is in it by then.
        self._adapters: list[tuple[Any, float]] = []
        self._free = weakref.finalize(self, _free_model, api, self._handle, self._adapters)
        try:
            for adapter in adapters:
                native = native_adapters.load_adapter(api, self._handle, adapter.path)
                self._adapters.append((native, adapter.scale))
        except BaseException:
            self._free()
            raise

    @property
    def handle(self) -> Any:
        """The native pointer.

        Raises:
            ClosedError: After close().
        """
        if not self._free.alive:
            raise ClosedError(f"the model {self.path.name} is closed")
        return self._handle

    def close(self) -> None:
        """Free the contexts, then the adapters, then the weights."""
        with self.lock:
            for context in list(self._contexts):
                context.close()
            self._free()

    # Facts of the file

    def metadata(self, key: str) -> str | None:
        """Return one metadata value as text, or None when the file has no such key."""
        size = self._api.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._api.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    @property
    def n_vocab(self) -> int:
        """Rows of the embedding."""
        return int(self._api.llama_vocab_n_tokens(self._vocab)) if self.handle else 0

    @property
    def n_params(self) -> int:
        """Weights in the file."""
        return int(self._api.llama_model_n_params(self.handle))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._api.llama_model_size(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """Context the model was trained for, in tokens."""
        return int(self._api.llama_model_n_ctx_train(self.handle))

    # Vocabulary

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text; no BOS or EOS is added.

        Args:
            text: Any text.
            parse_special: Read `<|im_start|>` and the like as the special tokens they name.
        """
        data = text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 8
        while True:
            buffer = (self._api.llama_token * capacity)()
            with self.lock:
                count = self._api.llama_tokenize(
                    self._vocab_checked(), data, len(data), buffer, capacity, False, parse_special
                )
            if count >= 0:
                return list(buffer[:count])
            capacity = -count

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for; a control token stands for none."""
        buffer = ctypes.create_string_buffer(256)
        with self.lock:
            size = self._api.llama_token_to_piece(self._vocab_checked(), token, buffer, len(buffer), 0, False)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = self._api.llama_token_to_piece(
                    self._vocab_checked(), token, buffer, len(buffer), 0, False
                )
        return buffer.raw[:size]

    def token_text(self, role: str) -> str | None:
        """Return the text of the "bos" or "eos" token as the vocabulary spells it, or None without one."""
        token = getattr(self._api, f"llama_vocab_{role}")(self._vocab_checked())
        if token < 0:
            return None
        text: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def appended_token(self) -> int | None:
        """Return the token that the file wants behind each text (tokenizer.ggml.add_eos_token), None without one."""
        token = self._api.llama_vocab_eos(self._vocab_checked())
        return int(token) if token >= 0 and self._api.llama_vocab_get_add_eos(self._vocab) else None

    def is_end(self, token: int) -> bool:
        """Return whether a token ends the reply (EOS, end of turn)."""
        with self.lock:
            return bool(self._api.llama_vocab_is_eog(self._vocab_checked(), token))

    def _vocab_checked(self) -> Any:
        assert self.handle, "Bug: handle raises when closed"
        return self._vocab


class NativeContext:
    """A KV cache for one conversation, and the compute buffers to extend it.

    Not for two threads at once: each call waits for the one in flight.
    """

    def __init__(
        self, model: NativeModel, config: LoadConfig, n_threads: int, *, logits_for_all: bool = False
    ) -> None:
        """Allocate a context.

        Args:
            model: Owner of the weights; must be open.
            config: n_ctx, n_batch, n_prefill_threads, affinity, flash_attention and kv_type are used.
            n_threads: CPU threads.
            logits_for_all: Keep the logits of every token of a call, not of the last one (n_batch * n_vocab * 4 bytes).

        Raises:
            NativeError: llama.cpp refuses; most often memory.
            UnsupportedError: Threads cannot be bound to cores here.
        """
        self.model = model
        self._api = api = model._api
        self._lock = threading.RLock()
        self._logits_for_all = logits_for_all
        n_batch = min(config.n_batch, config.n_ctx)
        params = context_params(api, config, n_threads)
        params.n_ctx = config.n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = 1
        if logits_for_all:
            params.n_outputs_max = n_batch
        # The flag's bytes are "" or "\1": see cancel().
        self._cancel_flag = ctypes.create_string_buffer(64)
        params.abort_callback = ctypes.cast(_libc_strlen(), api.ggml_abort_callback)
        params.abort_callback_data = ctypes.cast(self._cancel_flag, ctypes.c_void_p)
        library.clear_log()
        with library.interrupt_deferred():
            self._handle = api.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise NativeError(
                f"llama.cpp cannot make a context of {config.n_ctx} tokens: {library.last_errors() or 'no reason given'}",
                hint="A smaller n_ctx needs less memory.",
            )
        self.n_ctx = config.n_ctx  # llama.cpp rounds its own number up
        self.n_batch = n_batch
        self.n_past = 0
        self.most_kept_logits = _most_kept_logits(api, model.handle, params.n_outputs_max)
        self._n_vocab = model.n_vocab
        self._selected = -1  # as llama_get_logits_ith() counts: the last one
        self._rows: dict[int, NDArray[np.float32]] = {}  # by address
        self._memory = api.llama_get_memory(self._handle)
        self._batch = TokenBatch(api, n_batch)
        self._free = weakref.finalize(self, free_context, api, self._handle, self._batch.native)
        model._contexts.add(self)
        self._pinned = pinned_threads(api, self._handle, config, n_threads)
        if model._adapters:
            native_adapters.set_adapters(api, self._handle, model._adapters)

    @property
    def handle(self) -> Any:
        """The native pointer.

        Raises:
            ClosedError: After close().
        """
        if not self._free.alive:
            raise ClosedError("the session's context is closed")
        return self._handle

    def append(
        self, tokens: Sequence[int], *, wants_logits: bool = True, keeps_all_logits: bool = False
    ) -> None:
        """Evaluate tokens behind those in the cache, in one native call.

        Args:
            tokens: At most n_batch token ids.
            wants_logits: Whether the last token's logits will be read or sampled from.
            keeps_all_logits: Keep those of all tokens, of which there are at most most_kept_logits; see select().

        Raises:
            ContextOverflowError: They do not fit in the context.
            CancelledError: cancel() was called; the cache is as before the call.
            NativeError: llama.cpp failed; the cache is as before the call.
            ClosedError: After close().
        """
        count = len(tokens)
        assert 0 < count <= self.n_batch, f"Bug: {count} tokens for a batch of {self.n_batch}"
        if self.n_past + count > self.n_ctx:
            raise ContextOverflowError(
                f"{self.n_past} + {count} tokens do not fit in a context of {self.n_ctx}",
                hint=f"Load with a larger n_ctx (at least {self.n_past + count}) or shorten the conversation.",
            )
        with self._lock:
            handle = self.handle
            self._batch.clear()
            wanted: Literal["none", "last", "all"] = "last" if wants_logits else "none"
            is_all = self._logits_for_all or keeps_all_logits
            self._batch.add(tokens, self.n_past, 0, "all" if is_all else wanted)
            with calling_thread_kept() if self._pinned else contextlib.nullcontext():
                code = self._api.llama_decode(handle, self._batch.native)
            if code != 0:
                self._api.llama_memory_seq_rm(self._memory, 0, self.n_past, -1)
                # Source: include/llama.h, llama_decode: 2 is "aborted".
                if code == 2 and self.is_cancelled:
                    raise CancelledError("cancelled during evaluation")
                raise NativeError(
                    f"llama_decode failed with code {code}: {library.last_errors() or 'no reason given'}"
                )
            self.n_past += count
            self._selected = -1

    def select(self, index: int) -> None:
        """Take the logits of one token of the last call, which kept all, in place of the last one's."""
        self._selected = index

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first n_tokens of the cache."""
        assert 0 <= n_tokens <= self.n_past, f"Bug: rewind to {n_tokens} of {self.n_past}"
        with self._lock:
            assert self.handle, "Bug: handle raises when closed"
            # Asked even when n_past is already there: a call that Ctrl-C interrupted may have left more behind.
            if not self._api.llama_memory_seq_rm(self._memory, 0, n_tokens, -1):
                # Recurrent and sliding-window memories cannot be cut: start over.
                self._api.llama_memory_clear(self._memory, False)
                n_tokens = 0
            self.n_past = n_tokens

    def copy_logits(self, out: NDArray[np.float32]) -> None:
        """Copy the logits of the last call.

        Args:
            out: float32 [rows, n_vocab], one row for each token of the call, which needs logits_for_all.
        """
        with self._lock:
            pointer = self._api.llama_get_logits(self.handle)
            out[:] = np.ctypeslib.as_array(pointer, shape=out.shape)

    def last_logits(self) -> NDArray[np.float32]:
        """Return the logits of the last token, or the selected one: float32 [n_vocab].

        A view that the next append() overwrites.
        """
        pointer = self._api.llama_get_logits_ith(self.handle, self._selected)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None, f"Bug: no logits of token {self._selected} were kept"
        if address not in self._rows:
            # Making a view takes longer than the sampling; the buffer hardly ever moves.
            if len(self._rows) >= _RESERVED_LOGITS_ROWS:
                self._rows.clear()
            self._rows[address] = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
        return self._rows[address]

    def cancel(self) -> None:
        """Make the native call in flight return at its next graph node. Callable from any thread."""
        self._cancel_flag[0] = b"\x01"

    def clear_cancel(self) -> None:
        """Forget an earlier cancel()."""
        self._cancel_flag[0] = b"\x00"

    @property
    def is_cancelled(self) -> bool:
        """Whether cancel() was called since the last clear_cancel()."""
        return bool(self._cancel_flag[0] != b"\x00")

    def close(self) -> None:
        """Free the context, after the call in flight has returned."""
        with self._lock:
            self._free()
            if self._pinned is not None:
                self._pinned.free()


def _most_kept_logits(api: Any, model: Any, reserved: int) -> int:
    """Return the most tokens of a call whose logits may be kept; 0 for a memory that cannot be cut behind them."""
    is_cut = not (
        api.llama_model_is_recurrent(model)
        or api.llama_model_is_hybrid(model)
        or api.llama_model_n_swa(model)
    )
    return int(reserved) if is_cut else 0


def _free_model(api: Any, handle: Any, adapters: list[tuple[Any, float]]) -> None:
    for adapter, _ in adapters:
        api.llama_adapter_lora_free(adapter)
    api.llama_model_free(handle)


def _progress_callback(api: Any, tell: Callable[[float], None], stopped: list[BaseException]) -> Any:
    """Return llama.cpp's callback for a function; what that raises goes into a list, and ends the loading."""

    def callback(progress: float, _: object) -> bool:
        try:
            tell(progress)
        except BaseException as error:  # it may not pass through native frames
            stopped.append(error)
        return not stopped

    return api.llama_progress_callback(callback)


def _in_passing_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread that ends with it.

    llama.cpp repacks weights in parallel, and libgomp keeps a team of workers for each thread that ever asked for one.
    With a second team on the same cores it lets none spin while it waits: where this thread loads and another one
    decodes, decode takes three times as long (24 instead of 66 tokens/s on two cores).
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="qwen-edge loading") as passing:
        return passing.submit(function).result()


def context_params(api: Any, config: LoadConfig, n_threads: int) -> Any:
    """Return llama.cpp's parameters of a context, but for its sizes in tokens and sequences."""
    params = api.llama_context_default_params()
    # The compute buffer is laid out for this many rows of logits. The default, a whole batch, reserves 311 MB of
    # address space for Qwen's vocabulary; with the layout for a single row prefill takes up to 47% more CPU time.
    params.n_outputs_max = min(config.n_batch, config.n_ctx, _RESERVED_LOGITS_ROWS)
    params.n_threads, params.n_threads_batch = n_threads, config.n_prefill_threads or n_threads
    params.flash_attn_type = _FLASH_ATTENTION[config.flash_attention]
    params.type_k = params.type_v = TENSOR_TYPES[config.kv_type.upper()].ggml_id
    params.offload_kqv = params.op_offload = False
    params.no_perf = True
    return params


def pinned_threads(api: Any, context: Any, config: LoadConfig, n_threads: int) -> PinnedThreads | None:
    """Bind the threads of a context to cores where config.affinity says so; None where it does not.

    Raises:
        UnsupportedError: That cannot be done here; the context is as before.
    """
    if config.affinity == "none":
        return None
    n_most = max(n_threads, config.n_prefill_threads or 1)
    # The library goes through the CPUs by number; on big.LITTLE the small cores have the low ones.
    return PinnedThreads(api, context, device.core_cpus()[:n_most], n_most)


def free_context(api: Any, handle: Any, batch: Any) -> None:
    """Free a context and the batch that it is fed with."""
    api.llama_batch_free(batch)
    api.llama_free(handle)


def _libc_strlen() -> Any:
    """Return libc's strlen, which serves as llama.cpp's abort callback.

    llama.cpp asks `bool callback(void * data)` at every graph node. A Python function would take the interpreter
    lock a thousand times a token. strlen(data) is 0 (go on) for an empty buffer and 1 (abort) once cancel() has put
    a byte in, without touching Python.
    """
    return ctypes.CDLL(None).strlen
