"""`qwen-edge list`: the models that have a name, and what of each fits this machine."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.output import console_on, format_option, note, print_json
from qwen_edge.config import DEFAULT_N_CTX, LoadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from qwen_edge.catalog import CatalogModel
    from qwen_edge.hub.local import LocalModel
    from qwen_edge.memory import Fit
    from qwen_edge.stored import Stored

# Below this the licence is wrapped and one space is left between columns, so that names stay whole at 80.
_WIDE = 105
_KINDS = {"chat": "chat", "base": "base", "embedding": "embed", "reranker": "rerank"}
_THINKING = {"none": "no", "switch": "switch", "always": "always"}


@dataclass(frozen=True, slots=True)
class Row:
    """A model of the catalog, seen from this machine."""

    model: CatalogModel
    fits: tuple[Fit, ...]
    local: tuple[LocalModel, ...]

    @property
    def best(self) -> Fit | None:
        """The largest quantization that fits; an unquantized file is offered by --format json only."""
        quantized = (fit for fit in self.fits if fit.fits and fit.type_name not in ("BF16", "F16", "F32"))
        return next(quantized, None)

    @property
    def smallest(self) -> Fit:
        """What needs least."""
        return min(self.fits, key=lambda fit: fit.memory.total_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON types."""
        return {
            **asdict(self.model),
            "n_weights": self.model.n_weights,
            "fits": [
                {
                    "type": fit.type_name,
                    "file_bytes": fit.file_bytes,
                    "memory_bytes": fit.memory.total_bytes,
                    "wanted_bytes": fit.memory.wanted_bytes,
                    "memory": asdict(fit.memory),
                    "fits": fit.fits,
                }
                for fit in self.fits
            ],
            "largest_that_fits": self.best.type_name if self.best else None,
            "local": [
                {"path": str(found.path), "type": found.type_name, "is_checkpoint": found.is_checkpoint}
                for found in self.local
            ],
        }


@click.command("list")
@click.argument("name", required=False, shell_complete=complete_model)
@click.option(
    "--n-ctx",
    type=click.IntRange(min=16),
    default=DEFAULT_N_CTX,
    show_default=True,
    help="Context that is to fit too, in tokens.",
)
@click.option("--local", is_flag=True, help="Show only what is here, with size and place.")
@format_option
def command(name: str | None, n_ctx: int, local: bool, output_format: str) -> None:
    """List the models that have a name here, those first of which something fits this machine.

    NAME keeps those whose name, family or kind has it: qwen3, coder, embedding. Memory is estimated, for a full
    context of --n-ctx tokens with the cache in F16.
    """
    if local:
        _list_local(name, output_format)
        return
    from qwen_edge.cli.du import as_json
    from qwen_edge.device import available_memory_bytes
    from qwen_edge.hub.local import find_local
    from qwen_edge.memory import fits_of
    from qwen_edge.stored import stored_models

    memory = available_memory_bytes()
    config = LoadConfig(n_ctx=n_ctx)
    rows = [
        Row(model, fits_of(model, config, memory.available_bytes), find_local(model))
        for model in select(name)
    ]
    rows.sort(key=lambda row: row.best is None)
    if output_format == "json":
        print_json(
            {
                "n_ctx": n_ctx,
                "memory": asdict(memory),
                "models": [row.to_dict() for row in rows],
                "others": [as_json(item) for item in stored_models() if item.model is None],
            }
        )
        return
    console = console_on(sys.stdout)
    console.print(catalog_table(rows, is_narrow=console.width < _WIDE))
    note(f"Memory: {memory.reason}. Counted at n_ctx {n_ctx}.")
    if missing := sum(row.best is None for row in rows):
        note(
            f"{missing} of {len(rows)} do not fit: memory is what the smallest type on offer would need."
            + (" A smaller --n-ctx needs less." if n_ctx > 512 else "")
        )
    if published := [row.model.name for row in rows if not row.model.is_convertible]:
        note(f"Run as their authors' GGUF files, not converted here: {', '.join(published)}.")
    if others := sorted({item.name for item in stored_models() if item.model is None}):
        note(f"Here too: {', '.join(others)}. See qwen-edge list --local.")
    note("Next: qwen-edge pull NAME")


def _list_local(name: str | None, output_format: str) -> None:
    """Show what is here, of the catalog or not."""
    from qwen_edge.cli.du import as_json, show_table
    from qwen_edge.stored import stored_models

    stored = [item for item in stored_models() if name is None or _is_called(name, item)]
    if output_format == "json":
        print_json({"models": [as_json(item) for item in stored]})
    elif stored:
        show_table(stored, with_path=True)
        note("Next: qwen-edge chat NAME, or qwen-edge rm NAME")
    else:
        note(
            "Nothing is here"
            + (f" with {name!r} in its name." if name else " yet. Next: qwen-edge pull NAME")
        )


def _is_called(name: str, item: Stored) -> bool:
    from qwen_edge.catalog import names_of, normalised

    names = {normalised(item.name), normalised(item.repository or ""), normalised(item.path.name)}
    names |= names_of(item.model) if item.model is not None else set()
    return any(normalised(name) in text for text in names)


def select(name: str | None) -> list[CatalogModel]:
    """Return the rows of the catalog whose name, family or kind contains a text; all without one.

    Raises:
        ModelNotFoundError: There is none; offers the nearest name.
    """
    from qwen_edge.catalog import MODELS, names_of, nearest_model, normalised
    from qwen_edge.errors import ModelNotFoundError

    if name is None:
        return list(MODELS.values())
    wanted = normalised(name)
    chosen = [
        model
        for model in MODELS.values()
        if any(wanted in text for text in (*names_of(model), normalised(model.family), model.kind))
    ]
    if chosen:
        return chosen
    near = nearest_model(name)
    raise ModelNotFoundError(
        f"no model has {name!r} in its name, family or kind",
        hint=f"Did you mean {near.name}?" if near else "qwen-edge list shows all.",
    )


def catalog_table(rows: Sequence[Row], *, is_narrow: bool = False) -> Table:
    """Return one line a model, dim where nothing of it fits.

    Args:
        rows: In the order of the lines.
        is_narrow: Whether to spare columns.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if is_narrow else 1, 0, 0),
        header_style="bold",
    )
    table.add_column("Name", overflow="fold", vertical="bottom")
    table.add_column("Weights", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("Kind", no_wrap=True, vertical="bottom")
    table.add_column("Thinks", no_wrap=True, vertical="bottom")
    table.add_column("Con-\ntext", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("Licence", min_width=10, max_width=10 if is_narrow else None, vertical="bottom")
    table.add_column("Fits\nas", no_wrap=True, vertical="bottom")
    table.add_column("Memory\nGB", justify="right", no_wrap=True, vertical="bottom")
    table.add_column("Here", no_wrap=True, vertical="bottom")
    for row in rows:
        model, shown = row.model, row.best or row.smallest
        table.add_row(
            model.name,
            _weights(model.n_weights),
            _KINDS[model.kind],
            _THINKING[model.thinking],
            f"{model.n_ctx_train // 1024}k",
            model.licence,
            shown.type_name if row.best else "no",
            f"{shown.memory.total_bytes / 1e9:.2f}",
            _here(row.local),
            style="dim" if row.best is None else "",
        )
    return table


def _weights(n_weights: int) -> str:
    return f"{n_weights / 1e6:,.0f} M" if n_weights < 999.5e6 else f"{n_weights / 1e9:.2f} B"


def _here(local: Sequence[LocalModel]) -> str:
    """Return what is here in a few letters: the type of the first GGUF file, "HF" for a checkpoint alone."""
    if not local:
        return "-"
    return "HF" if local[0].is_checkpoint else local[0].type_name or "GGUF"
