"""What a user does with a model, once through, with the tiny one: each step a line, and the answers in a file.

    python -m tests.arm64.smoke --out answers.json                                    on the machine to compare with
    python -m tests.arm64.smoke --out here.json --expect answers.json --module NAME   on the other

With --expect, answers have to be those of that file. A step that fails does not stop those after it, unless they need
what it makes. Exit code 1 when one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import click

from qwen_edge.paths import cache_root
from tests.arm64.smoke_steps import STEPS, Files, Outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the answers go, as JSON")
    parser.add_argument("--expect", type=Path, help="answers of another machine")
    parser.add_argument("--module", default="", help="the CPU module that has to be loaded")
    options = parser.parse_args()
    expected: dict[str, Any] = {}
    if options.expect:
        expected = {step["name"]: step["answers"] for step in json.loads(options.expect.read_text())}
    with tempfile.TemporaryDirectory() as folder:
        # The builds of llama.cpp are those of the machine; what else is remembered begins empty.
        os.environ.setdefault("QWEN_EDGE_NATIVE", str(cache_root() / "native"))
        os.environ["QWEN_EDGE_CACHE"] = str(Path(folder, "cache"))
        steps = [
            run_step(step, Files(Path(folder), options.module), expected if options.expect else None)
            for step in STEPS
        ]
    options.out.write_text(json.dumps(steps, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [step["name"] for step in steps if step["problem"]]
    click.echo(
        f"{len(steps) - len(failed)} of {len(steps)} steps passed"
        + f": not {', '.join(failed)}" * bool(failed)
    )
    return 1 if failed else 0


def run_step(step: Any, files: Files, expected: dict[str, Any] | None) -> dict[str, Any]:
    """Run one step, print its line, and return what came of it, JSON-ready."""
    name = step.__name__
    start_s = time.monotonic()
    outcome, problem = Outcome(), ""
    try:
        outcome = step(files)
        if expected is not None:
            problem = first_difference(expected.get(name), json.loads(json.dumps(outcome.answers)))
    except Exception as error:
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"
    duration_s = time.monotonic() - start_s
    click.echo(
        f"{'FAIL' if problem else 'pass'}  {name}  {duration_s:.1f} s  {problem or outcome.said}".rstrip()
    )
    sys.stdout.flush()
    return {
        "name": name,
        "problem": problem,
        "duration_s": round(duration_s, 1),
        "answers": outcome.answers,
        "facts": outcome.facts,
    }


def first_difference(expected: Any, found: Any, where: str = "") -> str:
    """Return where two JSON values differ first, and how; "" where they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        pairs = ((f"{where}/{key}", expected[key], found[key]) for key in expected)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = ((f"{where}/{i}", *both) for i, both in enumerate(zip(expected, found, strict=True)))
    else:
        return "" if expected == found else f"{where or 'answers'}: {found!r}, there {expected!r}"
    return next((text for path, one, other in pairs if (text := first_difference(one, other, path))), "")


if __name__ == "__main__":
    sys.exit(main())
