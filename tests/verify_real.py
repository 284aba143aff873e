"""From the hub to a verified file, with a report: for a machine that reaches the hub, or a stand-in for it.

    python -m tests.verify_real [--model qwen3-0.6b] [--published Q8_0] [--out verify-real] [--questions FOLDER]

Pulls the checkpoint and the published GGUF file, converts, quantizes to the published file's type, compares tensors and
metadata, compares both files with the reference forward pass, asks fixed questions and measures speed. Writes
OUT/report.md and exits with 1 when something is not as it should be.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from qwen_edge import __version__, device, load
from qwen_edge.bench.runner import BenchConfig, run_benchmark
from qwen_edge.bench.ten_prompts import ask_all
from qwen_edge.bench.toy_tasks import measure_toy_accuracy
from qwen_edge.bench.workload import Workload
from qwen_edge.convert import convert_checkpoint, verify_file
from qwen_edge.errors import QwenEdgeError
from qwen_edge.hub import PullResult, pull
from qwen_edge.manifest import tool_versions
from qwen_edge.native.library import build_facts
from qwen_edge.quantize import quantize_file
from tests.gguf_difference import compare_files

# What a published file may say otherwise without being another model.
_DESCRIPTIVE_KEYS = ("general.", "tokenizer.chat_template", "quantize.")
_LEAST_PROMPTS_PASSED = 6
_MOST_SHARE_LOST = 0.05


@dataclass
class Report:
    """What was found, as Markdown; `problems` is empty when all is well."""

    out: Path
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        """Write what happens inside under a title, with its duration; an error becomes a problem and ends it all."""
        click.echo(f"{title} ...", err=True)
        self.lines.append(f"\n## {title}\n")
        start_s = time.monotonic()
        try:
            yield
        except (QwenEdgeError, OSError) as error:
            self.problem(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.say(f"{time.monotonic() - start_s:.1f} s")

    def say(self, text: str) -> None:
        """Add a line."""
        self.lines.append(f"- {text}")

    def problem(self, text: str) -> None:
        """Add a line about something that should not be."""
        self.problems.append(text)
        self.lines.append(f"- **{text}**")

    def check(self, holds: bool, text: str) -> None:
        """Add a line, as a problem where it does not hold."""
        (self.say if holds else self.problem)(text)

    def write(self, title: str) -> Path:
        """Write the report and return its path."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "report.md"
        count = len(self.problems)
        verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "everything as it should be"
        path.write_text("\n".join([f"# {title}: {verdict}\n", *self.lines]) + "\n", encoding="utf-8")
        return path


def _pull(report: Report, name: str) -> PullResult:
    start_s = time.monotonic()
    result = pull(name)
    seconds = time.monotonic() - start_s
    speed = "here already" if result.was_here else f"{result.size_bytes / 1e6 / seconds:.1f} MB/s"
    report.say(f"{result.title} from {result.source} ({result.location}), revision {result.revision or '-'}")
    report.say(f"{result.size_bytes / 1e6:,.1f} MB, {speed}, licence {result.licence or 'not stated'}")
    report.lines += [f"  - `{file.sha256}` {file.name} ({file.size_bytes:,} bytes)" for file in result.files]
    return result


def _compare(report: Report, ours: Path, published: Path) -> None:
    found = compare_files(ours, published)
    report.say(f"{found['tensors_equal']} tensors and {found['keys_equal']} keys are equal")
    for name, difference in found["tensor_differences"].items():
        # A tied head that the publisher wrote out is a copy of the embedding.
        is_copied_head = name == "output.weight" and difference == "only in llama.cpp's"
        what = difference.replace("llama.cpp's", "the published file")
        report.check(is_copied_head, f"tensor `{name}`: {what}")
    for name, difference in found["key_differences"].items():
        what = difference.replace("llama.cpp's", "the published file")
        report.check(name.startswith(_DESCRIPTIVE_KEYS), f"key `{name}`: {what}")


def _verify(report: Report, path: Path, checkpoint: Path) -> None:
    found = verify_file(path, checkpoint)
    report.check(
        found.is_within_limits,
        f"`{path.name}` ({found.type}): mean KLD {found.mean_kld:.2e} (limit {found.limits.mean_kld:g}), "
        f"same top token {found.top1_agreement:.2%}, largest logit error {found.max_logit_error:.3g}",
    )


def _ask_toy_questions(report: Report, original: Path, path: Path, questions: Path) -> None:
    """The quantized file should know nearly what the one in full precision does."""
    found = []
    for file in (original, path):
        with load(file, n_ctx=1024, n_threads=1) as model:
            found.append(measure_toy_accuracy(model, questions))
    for name in ("direct", "thinking", "tool_calls", "tool_answers"):
        before, after = (getattr(accuracy, name) for accuracy in found)
        report.check(
            after >= before - _MOST_SHARE_LOST,
            f"{name}: {after:.1%} right, {before:.1%} in `{original.name}`",
        )


def _ask_ten_prompts(report: Report, path: Path) -> None:
    passed = 0
    with load(path, n_ctx=2048) as model:
        for outcome in ask_all(model, lambda number, prompt: None, _read):
            passed += outcome.passed
            answer = outcome.replies[-1].text.strip().replace("\n", " ")[:200]
            verdict = "passed" if outcome.passed else f"failed ({outcome.problem})"
            report.say(f"{outcome.prompt.skill}, {verdict}: {answer}")
    report.check(passed >= _LEAST_PROMPTS_PASSED, f"{passed} of 10 passed")


def _read(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream.reply


def _measure(report: Report, files: list[Path], n_threads: int | None) -> None:
    workload = Workload(prompt_tokens=256, generate_tokens=64)
    record = run_benchmark(files, BenchConfig(workload=workload, repetitions=5, n_threads=n_threads))
    report.lines += [
        "| file | MB | prefill tokens/s | decode tokens/s | TTFT s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for result in record.results:
        report.lines.append(
            f"| {Path(result.file).name} | {result.size_bytes / 1e6:,.1f} "
            f"| {result.prefill_tokens_per_s.median:,.1f} | {result.decode_tokens_per_s.median:,.1f} "
            f"| {result.ttft_s:.3f} | {result.memory.peak_rss_bytes / 1e6:,.0f} |"
        )
    report.lines.append("")
    for warning in record.warnings:
        report.say(warning)


def run(model: str, published_type: str, out: Path, questions: Path | None) -> Report:
    """Do everything and return the report; an error ends it early and is in it."""
    report = Report(out)
    report.say(f"qwen-edge {__version__}, {device.cpu_name()}, {device.usable_cores()} cores")
    report.say(
        ", ".join(f"{name} {version}" for name, version in tool_versions("gguf").items())
        + f", llama-cpp-python {build_facts()['version']}"
    )
    out.mkdir(parents=True, exist_ok=True)
    bf16, ours = out / "bf16.gguf", out / f"{published_type}.gguf"
    steps: list[tuple[str, Callable[[], None]]] = []
    pulled: dict[str, Path] = {}

    def fetch(name: str, key: str) -> None:
        pulled[key] = _pull(report, name).path

    def convert() -> None:
        made = convert_checkpoint(pulled["checkpoint"], bf16)
        report.say(f"{made.tensor_count} tensors, {made.size_bytes / 1e6:,.1f} MB, SHA-256 `{made.sha256}`")
        for tensor in made.dropped:
            report.say(f"left out: {tensor.name} ({tensor.reason})")
        again = convert_checkpoint(pulled["checkpoint"], out / "again.gguf")
        report.check(again.sha256 == made.sha256, "a second conversion gives the same digest")
        again.path.unlink()
        again.manifest.unlink()

    steps += [
        ("Pull the checkpoint", lambda: fetch(model, "checkpoint")),
        ("Pull the published file", lambda: fetch(f"{model}@{published_type}", "published")),
        ("Convert to BF16", convert),
        (f"Quantize to {published_type}", lambda: _quantize(report, bf16, ours, published_type)),
        ("Ours and the published file", lambda: _compare(report, ours, pulled["published"])),
        ("Against the reference forward pass", lambda: _verify_all(report, [bf16, ours, pulled["published"]], pulled)),
        ("Questions", lambda: _ask(report, bf16, ours, questions)),
        ("Speed", lambda: _measure(report, [ours, pulled["published"]], 1 if questions else None)),
    ]  # fmt: skip
    for title, step in steps:
        try:
            with report.section(title):
                step()
        except (QwenEdgeError, OSError):
            break
    return report


def _quantize(report: Report, source: Path, target: Path, type_name: str) -> None:
    made = quantize_file(source, target, type_name, overwrite=True)
    report.say(
        f"{made.size_bytes / 1e6:,.1f} MB, {made.bits_per_weight:.2f} bits a weight, SHA-256 `{made.sha256}`"
    )


def _verify_all(report: Report, files: list[Path], pulled: dict[str, Path]) -> None:
    for file in files:
        _verify(report, file, pulled["checkpoint"])


def _ask(report: Report, original: Path, path: Path, questions: Path | None) -> None:
    if questions is not None:
        _ask_toy_questions(report, original, path, questions)
    else:
        _ask_ten_prompts(report, path)


@click.command()
@click.option("--model", default="qwen3-0.6b", show_default=True, help="A name of the catalog.")
@click.option(
    "--published", default="Q8_0", show_default=True, help="Type of the published file to compare with."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("verify-real"), show_default=True)
@click.option(
    "--questions",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of chat.jsonl and tools.jsonl to ask instead of the ten prompts (for the tiny model).",
)
def main(model: str, published: str, out: Path, questions: Path | None) -> None:
    """Verify a published model end to end."""
    report = run(model, published, out, questions)
    path = report.write(f"{model}, from the hub to a verified file")
    click.echo(path.read_text(encoding="utf-8"))
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
