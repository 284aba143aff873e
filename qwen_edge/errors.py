"""Every error that qwen-edge raises on purpose.

::

    QwenEdgeError
    ├── ConfigError                 a setting out of range, or two that contradict each other
    ├── MissingExtraError           an optional dependency is not installed
    ├── NoFolderError               no home folder, and QWEN_EDGE_CACHE names none
    ├── ModelNotFoundError          a name or path that leads to no model
    ├── FormatError                 a file that is not what it should be
    │   ├── CheckpointError         safetensors, config.json or tokenizer of a checkpoint
    │   ├── GGUFError               a GGUF file
    │   └── TemplateError           a chat template that does not render
    ├── UnsupportedError            a well-formed request that cannot be served (architecture, type)
    ├── VerificationError           a file that does not compute what its checkpoint does
    ├── ReadError                   a file that is there and cannot be read
    ├── WriteError                  a file or folder cannot be written
    │   ├── NoSpaceError            the disk is too small for it
    │   └── TargetBusyError         another process is writing it
    ├── DownloadError               a file could not be fetched
    │   ├── HubUnreachableError     no connection to the hub
    │   └── DigestError             what arrived is not what was stated
    ├── NativeError                 the native library refused or failed
    │   ├── NativeMissingError      no build of llama.cpp serves here, or it does not load
    │   └── NativeCrashError        the native library died in a child process
    ├── InsufficientMemoryError     the model does not fit in what is free
    ├── OutputError                 what a model wrote does not fit the schema, type or grammar asked for
    ├── ToolError                   a tool that cannot be called, or failed; too many rounds of calls
    ├── ContextOverflowError        more tokens than the context holds
    ├── ClosedError                 use of a model or session after close()
    └── CancelledError              a native call stopped by cancel(); ends a reply, never leaves the session

Each message says what was asked, what was found and where. `hint` says what to do next; the CLI prints it
on a line of its own. `cause` and `cure` of a class are what docs/errors.md says of it (python -m tests.faults --write).
"""

from __future__ import annotations

import errno
from typing import ClassVar


class QwenEdgeError(Exception):
    """Base of all errors of this package.

    Attributes:
        hint: What to do next, or None when the message says it all.
        cause: What leads to errors of this class.
        cure: What to do about them, where the hint says nothing better.
    """

    cause: ClassVar[str] = (
        "Something went wrong that qwen-edge knows of. Each error is of one of the classes below."
    )
    cure: ClassVar[str] = (
        "Read the message and the hint below it. QWEN_EDGE_DEBUG=1 shows where it was raised."
    )

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  {self.hint}" if self.hint else text

    @property
    def message(self) -> str:
        """The message without the hint."""
        return super().__str__()


class ConfigError(QwenEdgeError, ValueError):
    """A setting is out of range, or two settings contradict each other."""

    cause = (
        "An option or argument that cannot be: a number out of range, an unknown type, a target that exists."
    )
    cure = "The message names the setting, what is allowed and what was found. `qwen-edge COMMAND --help` lists them."


class MissingExtraError(QwenEdgeError, ImportError):
    """An optional dependency is needed and not installed."""

    cause = (
        "A plain install brings the core only. Converting, ONNX, typed output and figures need more packages."
    )
    cure = "Run the pip command of the hint, in the same environment."

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            hint=f'Install it with: pip install "qwen-edge[{extra}]"',
        )


class NoFolderError(QwenEdgeError, OSError):
    """There is no folder to keep files in."""

    cause = (
        "Neither HOME nor the system's list of users tells a home folder, as in some services and containers."
    )
    cure = (
        "Set QWEN_EDGE_CACHE, and HF_HOME for what comes from Hugging Face, to folders that can be written."
    )


class ModelNotFoundError(QwenEdgeError, FileNotFoundError):
    """A name or path that leads to no model."""

    cause = "A typing error, a model that was not fetched yet, or a checkpoint that was not converted yet."
    cure = "`qwen-edge list` shows the names, `qwen-edge pull NAME` fetches one. Relative paths start where you are."


class FormatError(QwenEdgeError):
    """A file is not what it should be."""

    cause = "A download or copy that was cut off, a file that was changed by hand, or one of another program."
    cure = "Fetch or make the file again. Saved sessions and cache entries can only be removed."


class CheckpointError(FormatError):
    """A checkpoint (safetensors, config.json, tokenizer) is incomplete or contradicts itself."""

    cause = "A file of the checkpoint is missing or cut off, or its tensors are not those that config.json describes."
    cure = "Fetch the checkpoint again with all its files. Files of two checkpoints do not mix."


class GGUFError(FormatError):
    """A GGUF file is damaged, truncated or not a GGUF file."""

    cause = "A download that was cut off, or a file of another format under this name."
    cure = "Fetch or convert it again: `qwen-edge pull NAME@TYPE`, or `qwen-edge convert CHECKPOINT`."


class TemplateError(FormatError):
    """A chat template does not compile or render."""

    cause = "The chat template in the model file is damaged, or made for another program."
    cure = "Use the file of another publisher, or convert the checkpoint with the template of its publisher."


class UnsupportedError(QwenEdgeError):
    """The request is well formed and cannot be served: architecture, type, feature."""

    cause = "The model is of another architecture, its weights are of another type, or it lacks what is asked of it."
    cure = "The message says what is supported. For weights that are quantized, take the checkpoint they were made from."


class VerificationError(QwenEdgeError):
    """A file does not compute what the checkpoint it was made from does."""

    cause = "The file was made from another checkpoint, was damaged, or the conversion is wrong."
    cure = "Convert again and verify again. If it stays so, report it with both names."


class ReadError(QwenEdgeError, OSError):
    """A file is there and cannot be read.

    Attributes:
        errno: As the system gave it.
    """

    cause = "The file belongs to somebody else, or the disk it is on is damaged."
    cure = "Change its permissions, or copy it to a folder of yours."

    def __init__(self, message: str, *, hint: str | None = None, code: int = errno.EACCES) -> None:
        super().__init__(message, hint=hint)
        self.errno = code


class WriteError(QwenEdgeError, OSError):
    """A file or folder cannot be written.

    Attributes:
        errno: As the system gave it.
    """

    cause = "The folder belongs to somebody else, is mounted read-only, or is a file."
    cure = "Name another folder with -o; for the cache, set QWEN_EDGE_CACHE to a folder of yours."

    def __init__(self, message: str, *, hint: str | None = None, code: int = errno.EACCES) -> None:
        super().__init__(message, hint=hint)
        self.errno = code


class NoSpaceError(WriteError):
    """The disk is too small for what is written."""

    cause = "The disk is full, a quota is used up, or files may not grow so large (ulimit -f)."
    cure = "Free some space or name a folder on another disk. An older file of the name is untouched; downloads go on."

    def __init__(self, message: str, *, hint: str | None = None, code: int = errno.ENOSPC) -> None:
        super().__init__(message, hint=hint, code=code)


class TargetBusyError(WriteError):
    """Another process is writing this file or folder."""

    cause = "Two runs have the same target. The one that began first goes on."
    cure = "Wait for the other one, or name another file."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code=errno.EBUSY)


class DownloadError(QwenEdgeError):
    """A file could not be fetched."""

    cause = (
        "The server refuses (no such repository, a licence to accept, a token that is missing) or breaks off."
    )
    cure = "Check the name; log in with `hf auth login` where it is asked for. What has arrived is kept: run it again."


class HubUnreachableError(DownloadError):
    """No connection to the hub."""

    cause = "No network, a proxy in between, or offline mode (HF_HUB_OFFLINE=1)."
    cure = "Check the connection, try another --source, or set HF_ENDPOINT to a mirror."


class DigestError(DownloadError):
    """What arrived does not have the stated digest."""

    cause = "The bytes were changed on the way, or the file changed on the server."
    cure = "Try again or take another --source. If it stays so, do not trust that server."


class NativeError(QwenEdgeError):
    """The native library refused or failed."""

    cause = "llama.cpp or ONNX Runtime gave up: most often memory, or a file that it does not like."
    cure = "The message is the library's own. A smaller n_ctx needs less memory."


class NativeMissingError(NativeError):
    """There is no build of llama.cpp that serves here, or its library does not load."""

    cause = "The extra `llama` is not installed, or was built for another machine."
    cure = "Do what the hint says. ONNX models run without it."


class NativeCrashError(NativeError):
    """The native library died in a child process."""

    cause = "The library was built for another CPU, a compiler built it wrongly, or memory ran out (SIGKILL)."
    cure = "Build it again for this machine, as the hint says; close other programs where memory ran out."


class InsufficientMemoryError(QwenEdgeError):
    """The model does not fit in the memory that is free."""

    cause = "Weights, KV cache and activations together are larger than what system, cgroup or ulimit leave."
    cure = "A smaller --n-ctx or a smaller type needs less; `qwen-edge plan` and `list` show what fits."


class OutputError(QwenEdgeError, ValueError):
    """What a model wrote does not fit the schema, type or grammar asked for.

    Attributes:
        text: What it wrote, "" when the error is about a part of it.
    """

    cause = (
        "The model ended early, or without the package llguidance wrote something else than was asked for."
    )
    cure = (
        "Give it more tokens, ask once more, or install the extra `typed`, which holds the model to the form."
    )

    def __init__(self, message: str, *, hint: str | None = None, text: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text


class ToolError(QwenEdgeError):
    """A tool cannot be called, or failed; or the model calls tools without end."""

    cause = "A function raised, its arguments do not fit its type hints, or the model asks for tools again and again."
    cure = "The message has the tool and its arguments. Catch errors inside the function; raise max_rounds if need be."


class ContextOverflowError(QwenEdgeError):
    """More tokens than the context holds."""

    cause = "The prompt, or the conversation so far, is longer than n_ctx."
    cure = "Load with a larger --n-ctx, begin a new conversation, or use on_overflow to drop or sum up old turns."


class ClosedError(QwenEdgeError):
    """Use of a model or session after close()."""

    cause = "The `with` block of the model has ended, or close() was called."
    cure = "Keep the model open as long as it is used."


class CancelledError(QwenEdgeError):
    """A native call was stopped by cancel(). Ends a reply; never leaves the session."""

    cause = "cancel(), a time limit or Ctrl-C ended the reply."
    cure = 'Nothing to mend: Reply.finish_reason is "cancelled", and the session goes on.'
