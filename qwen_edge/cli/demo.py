"""`qwen-edge demo`: convert, quantize, chat and measure, end to end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.output import console_on, format_option, print_json, styled
from qwen_edge.cli.progress import byte_progress, round_progress

if TYPE_CHECKING:
    from qwen_edge.bench.demo import DemoResult
    from qwen_edge.session import ReplyStream
    from qwen_edge.types import Reply


@click.command("demo")
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    help="tiny (embedded, no network), qwen2.5-coder-0.5b, qwen3-0.6b, a checkpoint folder or a GGUF file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the files made.",
)
@format_option
def command(model: str, output: Path, output_format: str) -> None:
    """Convert a checkpoint, quantize it, talk to it, measure each file, and say which one to take here.

    With --format json the story goes to stderr and stdout has one JSON document.
    """
    from qwen_edge.bench.demo import DemoConfig, Toolkit, run_demo
    from qwen_edge.convert import convert_checkpoint
    from qwen_edge.quantize import evaluate_kld, quantize_file

    stage = TerminalStage(to_stderr=output_format == "json")
    toolkit = Toolkit(convert=convert_checkpoint, quantize=quantize_file, evaluate=evaluate_kld)
    result = run_demo(DemoConfig(model=model, output=output), toolkit, stage)
    stage.conclude(result)
    if output_format == "json":
        print_json(result.to_dict())


class TerminalStage:
    """Tells the story on stdout, or on stderr when stdout carries JSON; progress bars are always on stderr."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._stream = sys.stderr if to_stderr else sys.stdout
        self._start = time.monotonic()

    def step(self, title: str) -> None:
        """See bench.demo.Stage."""
        self.say(styled(f"\n[{time.monotonic() - self._start:5.1f} s] {title}", self._stream, bold=True))

    def say(self, text: str) -> None:
        """See bench.demo.Stage."""
        click.echo(text, file=self._stream)

    def show(self, stream: ReplyStream) -> Reply:
        """See bench.demo.Stage: each kind of chunk begins on a line of its own."""
        names = {"thinking": "Think: ", "text": "Model: ", "tool_call": "Call:  "}
        last = ""
        for chunk in stream:
            text = chunk.text
            if chunk.tool_call is not None:
                arguments = ", ".join(
                    f"{name}={value!r}" for name, value in chunk.tool_call.arguments.items()
                )
                text = f"{chunk.tool_call.name}({arguments})"
            if chunk.kind != last or chunk.tool_call is not None:
                self._write(("\n" if last else "") + names[chunk.kind])
                last = chunk.kind
            self._write(styled(text, self._stream, dim=True) if chunk.kind == "thinking" else text)
        self._write("\n" if last else "Model: (nothing)\n")
        return stream.reply

    def _write(self, text: str) -> None:
        click.echo(text, file=self._stream, nl=False)

    @contextlib.contextmanager
    def bytes_progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """See bench.demo.Stage."""
        with byte_progress(label) as show:
            yield show

    @contextlib.contextmanager
    def rounds_progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """See bench.demo.Stage."""
        with round_progress(f"Measuring {label}") as show:
            yield show

    def conclude(self, result: DemoResult) -> None:
        """Show table, figure, advice and the next command."""
        from qwen_edge.bench.tables import bench_caption, demo_table

        self.step("Result")
        console = console_on(self._stream)
        console.print(demo_table(result.candidates, result.source.reference_label))
        console.print(bench_caption(result.record), soft_wrap=True)
        figure = f"figure: {result.figure}   " if result.figure else ""
        self.say(f"{figure}record: {result.record_file}")
        choice = Path(result.advice.choice.cost.file).name
        self.say(styled(f"\nTake {choice} here: {result.advice.reason}.", self._stream, bold=True))
        what = "The same with a real model" if result.source.is_tiny else "Talk to it"
        self.say(f"{what}: {result.next_command}")
        self.say(f"Total: {time.monotonic() - self._start:.1f} s")
