"""What the prefix cache saves: time to the first token behind a long system prompt with tools.

python -m qwen_edge.bench.prefix_cache FILE [--tokens 1000] [--threads N] [--repetitions 5] [--format human|json]

::

    cold      a new process, prefix cache off: everything is evaluated
    memory    the same session again, with another question: its KV cache holds the prefix
    disk      a new process that finds the prefix in the cache folder

Each round has all three, in turns. The time is Reply.stats.ttft_s: from send() to the first token, the model being loaded.
The file is in the operating system's page cache in each round; a first read from a slow disk takes longer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

import qwen_edge
from qwen_edge import device, hub
from qwen_edge.bench.tables import new_table
from qwen_edge.config import GREEDY
from qwen_edge.errors import NativeCrashError
from qwen_edge.model import Model
from qwen_edge.native import library
from qwen_edge.types import GenerationStats, Message

_CASES = ("cold", "memory", "disk")
_RULE = "Answer politely, say where a figure comes from, and never promise what the shop cannot keep. "
_TOOLS = [
    {
        "name": name,
        "description": description,
        "parameters": {
            "type": "object",
            "properties": {argument: {"type": "string", "description": f"The {argument}."}},
            "required": [argument],
        },
    }
    for name, description, argument in (
        ("find_order", "Look up an order by its number.", "number"),
        ("find_product", "Search the catalogue.", "words"),
        ("opening_hours", "When a branch is open.", "city"),
    )
]
_QUESTIONS = ("Where is my order 1234?", "Do you sell blue lamps?")


def _system_prompt(model: Model, n_tokens: int) -> str:
    """Return a system prompt that is, with the tools, about as many tokens long as asked for."""
    tools = [{"type": "function", "function": tool} for tool in _TOOLS]

    def length(n_rules: int) -> int:
        system = Message("system", _RULE * n_rules)
        return len(model.engine.tokenize(model.template.render([system], tools=tools)))

    n_rules = 1
    while length(n_rules) < n_tokens:
        n_rules += 1
    return _RULE * n_rules


def _measure(file: str, n_tokens: int, n_threads: int | None, *, prefix_cache: bool) -> dict[str, Any]:
    """Ask the first question of a session, then another with the first one taken back; return both stats."""
    with qwen_edge.load(file, n_ctx=n_tokens + 512, n_threads=n_threads, prefix_cache=prefix_cache) as model:
        system = _system_prompt(model, n_tokens)
        stats: list[GenerationStats] = []
        with model.session(system=system, tools=_TOOLS) as session:
            for question in _QUESTIONS:
                stats.append(session.send(question, max_tokens=1, sampling=GREEDY).stats)
                session.undo()
    return {"first": stats[0].to_dict(), "again": stats[1].to_dict()}


def _in_new_process(arguments: list[str], cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "qwen_edge.bench.prefix_cache", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "QWEN_EDGE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NativeCrashError(
            f"the measuring process ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(file: str, n_tokens: int, n_threads: int | None, repetitions: int) -> dict[str, Any]:
    """Measure all cases in turns, each round in two new processes.

    Args:
        file: A GGUF file.
        n_tokens: Length of the system prompt with the tools.
        n_threads: CPU threads; None takes the physical cores.
        repetitions: Rounds.

    Returns:
        JSON-ready: samples and medians of the time to the first token in seconds, and what the entry takes on disk.
    """
    arguments = [file, "--tokens", str(n_tokens), *(["--threads", str(n_threads)] if n_threads else [])]
    samples: dict[str, list[float]] = {case: [] for case in _CASES}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        stored = _in_new_process([*arguments, "--once", "on"], cache)["first"]
        for _ in range(repetitions):
            cold = _in_new_process([*arguments, "--once", "off"], cache)
            disk = _in_new_process([*arguments, "--once", "on"], cache)
            assert disk["first"]["prefix_cache"] == "hit", f"Bug: not from disk: {disk['first']}"
            samples["cold"].append(cold["first"]["ttft_s"])
            samples["memory"].append(cold["again"]["ttft_s"])
            samples["disk"].append(disk["first"]["ttft_s"])
        entry_bytes = sum(path.stat().st_size for path in (cache / "prefixes").glob("*.prefix"))
    medians = {case: round(statistics.median(values), 6) for case, values in samples.items()}
    return {
        "prompt_tokens": stored["prompt_tokens"],
        "storing_s": stored["ttft_s"],
        "entry_bytes": entry_bytes,
        "median_s": medians,
        "share_of_cold": {case: round(medians[case] / medians["cold"], 4) for case in _CASES},
        "samples_s": samples,
    }


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console

    table = new_table("", "Time to first token, ms", "Share of cold")
    for case in _CASES:
        table.add_row(case, f"{1000 * result['median_s'][case]:.1f}", f"{result['share_of_cold'][case]:.3f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{result['prompt_tokens']} tokens; the entry takes {result['entry_bytes'] / 1e6:.1f} MB; "
        f"the turn that stored it took {1000 * result['storing_s']:.1f} ms to the first token"
    )


@click.command()
@click.argument("file")
@click.option("--tokens", type=click.IntRange(min=300), default=1000, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--format", "output_format", type=click.Choice(["human", "json"]), default="human", show_default=True
)
@click.option(
    "--once", type=click.Choice(["on", "off"]), hidden=True, help="Measure in this process, print JSON."
)
def main(
    file: str, tokens: int, threads: int | None, repetitions: int, output_format: str, once: str | None
) -> None:
    """Measure what the prefix cache saves with a long system prompt and tools."""
    if once:
        click.echo(json.dumps(_measure(file, tokens, threads, prefix_cache=once == "on")))
        return
    result = measure(str(hub.locate(file)), tokens, threads, repetitions)
    if output_format == "human":
        _print_table(result)
        return
    document = {
        "schema": "qwen-edge/prefix-cache/1",
        "machine": {**device.describe_machine(), "native": library.build_facts()},
        "file": file,
        "threads": threads or device.usable_cores(),
        **result,
    }
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
