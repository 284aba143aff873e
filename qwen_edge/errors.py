"""Every error that qwen-edge raises on purpose.

::

    QwenEdgeError
    ├── ConfigError                 a setting out of range, or two that contradict each other
    ├── MissingExtraError           an optional dependency is not installed
    ├── ModelNotFoundError          a name or path that leads to no model
    ├── FormatError                 a file that is not what it should be
    │   ├── CheckpointError         safetensors, config.json or tokenizer of a checkpoint
    │   ├── GGUFError               a GGUF file
    │   └── TemplateError           a chat template that does not render
    ├── UnsupportedError            a well-formed request that cannot be served (architecture, type)
    ├── VerificationError           a file that does not compute what its checkpoint does
    ├── DownloadError               a file could not be fetched
    │   ├── HubUnreachableError     no connection to the hub
    │   ├── NoSpaceError            the disk is too small for it
    │   └── DigestError             what arrived is not what was stated
    ├── NativeError                 the native library refused or failed
    │   ├── NativeMissingError      no build of llama.cpp serves here, or it does not load
    │   └── NativeCrashError        the native library died in a child process
    ├── InsufficientMemoryError     the model does not fit in what is free
    ├── OutputError                 what a model wrote does not fit the schema, type or grammar asked for
    ├── ToolError                   a tool that cannot be called, or failed; too many rounds of calls
    ├── ContextOverflowError        more tokens than the context holds
    ├── CancelledError              a native call stopped by cancel(); ends a reply, never leaves the session
    └── ClosedError                 use of a model or session after close()

Each message says what was asked, what was found and where. `hint` says what to do next; the CLI prints it
on a line of its own.
"""

from __future__ import annotations


class QwenEdgeError(Exception):
    """Base of all errors of this package.

    Attributes:
        hint: What to do next, or None when the message says it all.
    """

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


class MissingExtraError(QwenEdgeError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            hint=f'Install it with: pip install "qwen-edge[{extra}]"',
        )


class ModelNotFoundError(QwenEdgeError, FileNotFoundError):
    """A name or path that leads to no model."""


class FormatError(QwenEdgeError):
    """A file is not what it should be."""


class CheckpointError(FormatError):
    """A checkpoint (safetensors, config.json, tokenizer) is incomplete or contradicts itself."""


class GGUFError(FormatError):
    """A GGUF file is damaged, truncated or not a GGUF file."""


class TemplateError(FormatError):
    """A chat template does not compile or render."""


class UnsupportedError(QwenEdgeError):
    """The request is well formed and cannot be served: architecture, type, feature."""


class VerificationError(QwenEdgeError):
    """A file does not compute what the checkpoint it was made from does."""


class DownloadError(QwenEdgeError):
    """A file could not be fetched."""


class HubUnreachableError(DownloadError):
    """No connection to the hub."""


class NoSpaceError(DownloadError):
    """The disk is too small for what is fetched."""


class DigestError(DownloadError):
    """What arrived does not have the stated digest."""


class NativeError(QwenEdgeError):
    """The native library refused or failed."""


class NativeMissingError(NativeError):
    """There is no build of llama.cpp that serves here, or its library does not load."""


class NativeCrashError(NativeError):
    """The native library died in a child process."""


class InsufficientMemoryError(QwenEdgeError):
    """The model does not fit in the memory that is free."""


class OutputError(QwenEdgeError, ValueError):
    """What a model wrote does not fit the schema, type or grammar asked for.

    Attributes:
        text: What it wrote, "" when the error is about a part of it.
    """

    def __init__(self, message: str, *, hint: str | None = None, text: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text


class ToolError(QwenEdgeError):
    """A tool cannot be called, or failed; or the model calls tools without end."""


class ContextOverflowError(QwenEdgeError):
    """More tokens than the context holds."""


class ClosedError(QwenEdgeError):
    """Use of a model or session after close()."""


class CancelledError(QwenEdgeError):
    """A native call was stopped by cancel(). Ends a reply; never leaves the session."""
