"""What runs in little memory: `python -m qwen_edge.bench.small_memory [--limits 512MB 1GB 2GB 4GB] [--model NAME...]`.

For each limit and model, what `qwen-edge plan --memory` chooses is run in a process under that limit (a cgroup; Linux, and the
rights for it: as root): random weights of the model's shape, the largest context that the plan promises, filled to the end
(`memory_cell`; batches that take long are ended after their first layers), beside as much memory as the vocabulary's tables
take, which random weights come without. The whole Python process counts, and the pages of the file. Where the weights have
no room but as pages that come and go, the command line is asked too, with its usual settings: it has to refuse.

Prints a table in markdown, with --format json one JSON line for each cell. The exit code is 1 where a process was killed, or
failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_edge.bench.memory_cgroup import forget_cached, memory_cgroup
from qwen_edge.bench.memory_limit import try_limit
from qwen_edge.bench.memory_prediction import predict
from qwen_edge.byte_sizes import parse_bytes
from qwen_edge.catalog import find_model
from qwen_edge.catalog_types import CatalogModel
from qwen_edge.config import LoadConfig
from qwen_edge.memory_fit import best_fit, catalog_variants
from qwen_edge.trial_model import Architecture, write_trial_model

# One of each shape of the catalog up to 4B that is converted here.
SHAPES = ("qwen2.5-0.5b", "qwen3-0.6b", "qwen2.5-1.5b", "qwen3-1.7b", "qwen2.5-3b", "qwen3-4b")
LIMITS = ("512MB", "1GB", "2GB", "4GB")
_ARCHITECTURES: dict[str, Architecture] = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama"}
_COLUMNS = "| limit | model | type | n_ctx | settings | file | predicted | held | VmHWM | disk a token, predicted / read | kills | outcome |"


def run_row(model: CatalogModel, limit_bytes: int, folder: Path) -> dict[str, Any]:
    """Return what is planned for a model in a limit, and what became of it.

    Args:
        model: A row of the catalog with a shape.
        limit_bytes: Of the cgroup.
        folder: Where the random weights are kept meanwhile.

    Raises:
        UnsupportedError: No cgroup can be made here.
        OSError: The disk is too small.
    """
    variants = catalog_variants(model)
    fit = best_fit(variants, LoadConfig(), limit_bytes, n_ctx_train=model.n_ctx_train)
    row: dict[str, Any] = {"limit_bytes": limit_bytes, "model": model.name}
    if fit is None:
        smallest = min(variants, key=lambda variant: variant.file_bytes).type_name
        path = _write(model, smallest, folder)
        try:
            return row | {"type": smallest, "fits": False, "anyway": _load_anyway(path, limit_bytes)}
        finally:
            path.unlink()
    config = replace(
        fit.config,
        n_ctx=fit.largest_n_ctx,
        n_threads=1,  # memory is what is measured, and other programs may be at work
        safe_kernels=bool(fit.config.safe_kernels),
        prefix_cache=False,
    )
    path = _write(model, fit.type_name, folder)
    try:
        # The tables of a vocabulary: the difference between a real file and one of random weights.
        variant = next(each for each in variants if each.type_name == fit.type_name)
        need = variant.estimate(config)
        assert need is not None, "Bug: a fit has a need"
        ballast_bytes = need.runtime_bytes - predict(path, config).runtime_bytes
        found = try_limit(path, config, limit_bytes, ballast_bytes=ballast_bytes)
        if fit.is_from_disk:
            row["anyway"] = _load_anyway(path, limit_bytes)
    finally:
        path.unlink()
    return (
        row
        | {
            "type": fit.type_name,
            "fits": True,
            "settings": fit.settings | {"n_ctx": config.n_ctx},
            "file_bytes": fit.file_bytes,
            "predicted_bytes": need.held_bytes,
            "disk_bytes_per_token": fit.disk_bytes_per_token,
        }
        | found
    )


def _write(model: CatalogModel, type_name: str, folder: Path) -> Path:
    assert model.shape is not None, f"Bug: {model.name} has no shape"
    path = folder / f"{model.name}-{type_name.lower()}.gguf"
    write_trial_model(
        path,
        model.shape,
        type_name,
        architecture=_ARCHITECTURES[model.architecture],
        n_ctx_train=model.n_ctx_train,
    )
    return path


def _load_anyway(path: Path, limit_bytes: int) -> dict[str, Any]:
    """Return what the command line says and does about a file in a limit, with its usual settings."""
    forget_cached(path)
    with memory_cgroup() as cgroup:
        cgroup.limit(limit_bytes)
        command = [sys.executable, "-m", "qwen_edge", "run", str(path), "Hi"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=cgroup.enter)
        kills = cgroup.kills()
    return {"exit_code": run.returncode, "said": run.stderr.strip()[-1000:], "kills": kills}


def is_sound(row: dict[str, Any]) -> bool:
    """Return whether nothing was killed, and nothing failed."""
    anyway = row.get("anyway")
    refuses = anyway is None or (anyway["exit_code"] == 1 and not anyway["kills"])
    return refuses and (not row["fits"] or (row["outcome"] == "ran" and not row["kills"]))


def markdown_line(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    anyway = row.get("anyway")
    refusal = "" if anyway is None else f"; as usual refused with exit code {anyway['exit_code']}"
    head = [_size(row["limit_bytes"]), row["model"]]
    if not row["fits"]:
        return _line([*head, f"no ({row['type']})", *["-"] * 7, str(anyway["kills"]), refusal[2:]])  # type: ignore[index]
    disk = [
        _size(row[name]) if row["disk_bytes_per_token"] else "-"
        for name in ("disk_bytes_per_token", "disk_bytes")
    ]
    settings = [f"{name} {value}" for name, value in row["settings"].items() if name != "n_ctx"]
    return _line(
        [
            *head,
            row["type"],
            f"{row['settings']['n_ctx']:,}",
            ", ".join(settings) or "-",
            _size(row["file_bytes"]),
            _size(row["predicted_bytes"]),
            _size(row["held_bytes"]),
            _size(row["peak_bytes"]),
            " / ".join(dict.fromkeys(disk)),
            str(row["kills"] + (anyway["kills"] if anyway else 0)),
            f"{row['outcome']}{refusal}",
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 999_500_000 else f"{n_bytes / 1e6:.0f} MB"


def rows(models: Sequence[str], limits_bytes: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield each cell as it is done."""
    for limit_bytes in limits_bytes:
        for name in models:
            yield run_row(find_model(name), limit_bytes, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run each cell and print it."""
    parser = argparse.ArgumentParser(prog="python -m qwen_edge.bench.small_memory", description=__doc__)
    parser.add_argument(
        "--limits", type=parse_bytes, nargs="+", default=[parse_bytes(each) for each in LIMITS]
    )
    parser.add_argument("--model", nargs="+", default=SHAPES, help="names of the catalog")
    parser.add_argument("--folder", type=Path, help="where random weights are kept, one file at a time")
    parser.add_argument("--format", choices=["markdown", "json"], default="markdown")
    options = parser.parse_args(argv)
    with memory_cgroup():
        pass  # says at once what is missing for it
    if options.format == "markdown":
        _print(_COLUMNS)
        _print("|" + "---|" * (_COLUMNS.count("|") - 1))
    is_all_sound = True
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="small-memory-") as folder:
        for row in rows(options.model, options.limits, Path(folder)):
            is_all_sound &= is_sound(row)
            _print(json.dumps(row) if options.format == "json" else markdown_line(row))
    return 0 if is_all_sound else 1


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
