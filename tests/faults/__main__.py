"""Run the faults and write down what they answer.

    python -m tests.faults [--write] [TEXT ...]

Runs the faults whose names hold one of the texts (all without one), prints what differs from tests/faults/results.json,
and with --write replaces it there and in docs/errors.md and docs/faults.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from tests.faults.documents import DOCUMENTS, RESULTS
from tests.faults.running import Outcome, can_mount, read_results, run_fault, run_whole
from tests.faults.table import FAULTS, key
from tests.faults.world import Stock


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--write", action="store_true", help="keep what the faults answer now")
    options = parser.parse_args()
    known = read_results(RESULTS)
    results = {key(fault): known[key(fault)] for fault in FAULTS if key(fault) in known}
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        stock = Stock(Path(folder), run_whole)
        for fault in FAULTS:
            name = key(fault)
            if options.texts and not any(text in name for text in options.texts):
                continue
            if fault.small_disk_bytes is not None and not can_mount():
                click.echo(f"-- {name}: skipped, no file system can be mounted here")
                continue
            with tempfile.TemporaryDirectory() as here:
                try:
                    outcome = run_fault(fault, Path(here), stock)
                except Exception as error:
                    outcome = Outcome(
                        error="FAULT FAILED", exit_code=-1, message=f"{type(error).__name__}: {error}"
                    )
            if known.get(name) != outcome:
                differing += 1
                click.echo(
                    f"-- {name}\n   {fault.command or fault.python}\n   {outcome.error} {outcome.exit_code}\n{outcome.message}",
                )
            results[name] = outcome
    if options.write:
        ordered = {key(fault): asdict(results[key(fault)]) for fault in FAULTS if key(fault) in results}
        RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for path, make in DOCUMENTS.items():
            path.write_text(make(), encoding="utf-8")
    click.echo(f"{differing} of {len(results)} differ from {RESULTS.name}")
    return 0 if options.write or not differing else 1


if __name__ == "__main__":
    sys.exit(main())
