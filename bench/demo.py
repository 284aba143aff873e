"""`qwen-edge demo`: from a checkpoint to a table, a figure and advice.

::

    source      checkpoint -> BF16 file, or a GGUF file as it is: the reference for quality
    shrink      reference -> quantized files
    talk        demo_chat with the embedded model, ten_prompts with any other
    measure     KLD of each file, then run_benchmark
    conclude    figure, record, advice

Converting, quantizing and evaluating are handed in by the command line: bench stands on the public API alone.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import qwen_edge
from qwen_edge.bench import demo_chat, ten_prompts
from qwen_edge.bench.advice import Advice, Candidate, choose
from qwen_edge.bench.demo_source import (
    OFFERED,
    TINY,
    Source,
    demo_command,
    find_source,
    held_out_text,
)
from qwen_edge.bench.figure import save_figure
from qwen_edge.bench.record import BenchRecord
from qwen_edge.bench.runner import BenchConfig, run_benchmark
from qwen_edge.bench.tables import count
from qwen_edge.bench.workload import Workload
from qwen_edge.errors import ConfigError, MissingExtraError
from qwen_edge.files import atomic_path

SCHEMA = "qwen-edge/demo/1"
_TYPES = ("Q8_0", "Q4_K_M", "Q4_0")
_N_CTX = 1024
_KLD_N_CTX = 512

Progress = Callable[[int, int], None]


class Stage(demo_chat.Narrator, Protocol):
    """Where the demo shows itself."""

    def step(self, title: str) -> None:
        """Begin a step: one line with the seconds since the start."""

    def bytes_progress(self, label: str) -> AbstractContextManager[Progress]:
        """Show progress in bytes while the block runs."""

    def rounds_progress(self, label: str) -> AbstractContextManager[Progress]:
        """Show progress in rounds while the block runs."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """What the demo needs from outside bench.

    Attributes:
        convert: qwen_edge.convert.convert_checkpoint.
        quantize: qwen_edge.quantize.quantize_file.
        evaluate: qwen_edge.quantize.evaluate_kld.
    """

    convert: Callable[..., Any]
    quantize: Callable[..., Any]
    evaluate: Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the demo runs on and how long it measures.

    Attributes:
        model: "tiny" (the checkpoint embedded in the repository), a name of the catalog, a checkpoint folder or a
            GGUF file.
        output: Folder for the files made.
        workload: What each file is measured with.
        repetitions: How often.
        n_threads: CPU threads; None takes what suits the model.
    """

    model: str = TINY
    output: Path = Path("demo-out")
    workload: Workload = field(default_factory=lambda: Workload(prompt_tokens=256, generate_tokens=64))
    repetitions: int = 3
    n_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """All that the demo found.

    Attributes:
        source: What it ran on.
        candidates: One a file, in the order of size.
        record: The benchmark.
        exchanges: The conversation with the embedded model; empty for others.
        outcomes: The ten prompts; empty for the embedded model.
        advice: Which file to take here.
        figure: The PNG; None without matplotlib.
        record_file: The JSON beside it.
        next_command: What to do now.
        duration_s: Wall-clock time of everything.
    """

    source: Source
    candidates: tuple[Candidate, ...]
    record: BenchRecord
    exchanges: tuple[demo_chat.Exchange, ...]
    outcomes: tuple[ten_prompts.Outcome, ...]
    advice: Advice
    figure: Path | None
    record_file: Path
    next_command: str
    duration_s: float

    @property
    def passed(self) -> int:
        """How many of the ten prompts have passed."""
        return sum(outcome.passed for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "schema": SCHEMA,
            "model": self.source.title,
            "quality_against": self.source.reference_label,
            "files": [candidate.to_dict() for candidate in self.candidates],
            "conversation": [exchange.to_dict() for exchange in self.exchanges],
            "ten_prompts": {
                "passed": self.passed,
                "asked": len(self.outcomes),
                "sampling": "greedy",
                "outcomes": [outcome.to_dict() for outcome in self.outcomes],
            }
            if self.outcomes
            else None,
            "bench": self.record.to_dict(),
            "advice": self.advice.to_dict(),
            "figure": str(self.figure) if self.figure else None,
            "next_command": self.next_command,
            "duration_s": round(self.duration_s, 3),
        }


def run_demo(config: DemoConfig, toolkit: Toolkit, stage: Stage) -> DemoResult:
    """Run all steps.

    Args:
        config: Model, output folder, sizes.
        toolkit: Converting, quantizing, evaluating.
        stage: Shows what happens.

    Raises:
        ModelNotFoundError: No such model; the nearest is offered.
        HubUnreachableError: The checkpoint is on the hub, and the hub does not answer.
        QwenEdgeError: A step fails.
    """
    start = time.monotonic()
    _check_output(config.output)
    source = find_source(config.model, stage)
    if config.n_threads is not None:
        source = dataclasses.replace(source, n_threads=config.n_threads)
    reference = _reference_file(source, config, toolkit, stage)
    files = _shrink(source, reference, config, toolkit, stage)
    talk_file = reference if source.is_converted else files[source.name_of("Q8_0")]
    exchanges, outcomes = _talk(source, talk_file, stage)
    quality = _evaluate(source, reference, files, toolkit, stage)
    record = _bench(source, [reference, *files.values()], config, stage)
    candidates = _candidates(source, reference, quality, record)
    advice = choose(candidates)
    result = DemoResult(
        source=source,
        candidates=candidates,
        record=record,
        exchanges=tuple(exchanges),
        outcomes=tuple(outcomes),
        advice=advice,
        figure=_draw(source, record, candidates, advice, config.output / f"{source.stem}.png", stage),
        record_file=config.output / f"{source.stem}.json",
        next_command=demo_command(OFFERED[0])
        if source.is_tiny
        else f"qwen-edge chat {advice.choice.cost.file}",
        duration_s=time.monotonic() - start,
    )
    with atomic_path(result.record_file) as part:
        part.write_text(json.dumps(result.to_dict(), ensure_ascii=False, indent=2) + "\n")
    return result


def _draw(
    source: Source,
    record: BenchRecord,
    candidates: Sequence[Candidate],
    advice: Advice,
    target: Path,
    stage: Stage,
) -> Path | None:
    """Save the figure; without matplotlib say so, since everything else is done by then."""
    threads = count(record.results[0].settings["threads"], "thread")
    title = f"{source.title} on {record.machine['cpu']}, {threads}"
    try:
        save_figure(target, title, source.reference_label, candidates, advice.choice)
    except MissingExtraError as error:
        stage.say(f"no figure: {error}")
        return None
    return target


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder", hint="Name another folder with -o.")


def _reference_file(source: Source, config: DemoConfig, toolkit: Toolkit, stage: Stage) -> Path:
    """Return the file that quality is measured against; converts a checkpoint."""
    if source.is_converted:
        stage.step(f"Taking {source.path.name} as it is: already converted")
        return source.path
    target = config.output / source.name_of("BF16")
    stage.step(f"Converting {source.path.name} to GGUF, BF16")
    with stage.bytes_progress(target.name) as progress:
        report = toolkit.convert(source.path, target, dtype="bf16", progress=progress)
    stage.say(
        f"{target.name}: {report.size_bytes / 1e6:,.1f} MB, {report.parameter_count / 1e6:,.1f} M weights"
    )
    return target


def _shrink(
    source: Source, reference: Path, config: DemoConfig, toolkit: Toolkit, stage: Stage
) -> dict[str, Path]:
    """Quantize the reference; return the files by name."""
    types = [name for name in _TYPES if name != source.reference_label]
    stage.step(f"Quantizing to {', '.join(types[:-1])} and {types[-1]}")
    files, twice = {}, False
    for type_name in types:
        target = config.output / source.name_of(type_name)
        with stage.bytes_progress(target.name) as progress:
            report = toolkit.quantize(
                reference,
                target,
                type_name,
                allow_requantize=source.is_converted,
                overwrite=True,
                n_threads=source.n_threads,
                progress=progress,
            )
        stage.say(
            f"{target.name}: {report.size_bytes / 1e6:,.1f} MB, {report.bits_per_weight:.2f} bits a weight"
        )
        files[target.name] = target
        twice = twice or report.requantized > 0
    if twice:
        stage.say(
            f"{reference.name} was quantized already, so these have lost precision twice: fit to compare speed and "
            "memory, worse in quality than the same types made from the checkpoint."
        )
    return files


def _talk(
    source: Source, file: Path, stage: Stage
) -> tuple[Sequence[demo_chat.Exchange], Sequence[ten_prompts.Outcome]]:
    with qwen_edge.load(file, n_ctx=_N_CTX, n_threads=source.n_threads) as model:
        if source.is_tiny:
            stage.step(f"Asking {file.name}: directly, with thinking, with a tool")
            return demo_chat.converse(model, stage), ()
        stage.step(f"Asking {file.name} ten fixed prompts, greedy, each checked by code")
        outcomes = []

        def announce(number: int, prompt: ten_prompts.Prompt) -> None:
            stage.say(f"\n{number}. {prompt.skill}: {prompt.text}")

        for outcome in ten_prompts.ask_all(model, announce, stage.show):
            stage.say("-> passed" if outcome.passed else f"-> FAILED: {outcome.problem}")
            outcomes.append(outcome)
        stage.say(f"\n{sum(outcome.passed for outcome in outcomes)} of {len(outcomes)} passed")
        return (), outcomes


def _evaluate(
    source: Source, reference: Path, files: dict[str, Path], toolkit: Toolkit, stage: Stage
) -> dict[str, Any]:
    """Return the quality report of each file but the reference, by name."""
    stage.step(f"Measuring quality: KL divergence from {source.reference_label} on held-out text")
    text = held_out_text()
    reports = {}
    for name, file in files.items():
        with stage.rounds_progress(name) as progress:
            reports[name] = toolkit.evaluate(
                reference, file, text, n_ctx=_KLD_N_CTX, n_threads=source.n_threads, progress=progress
            )
        stage.say(
            f"{name}: KLD {reports[name].mean_kld:.4f}, same top token {reports[name].same_top_share:.1%} "
            f"of {reports[name].tokens_scored:,} predictions"
        )
    return reports


def _bench(source: Source, files: Sequence[Path], config: DemoConfig, stage: Stage) -> BenchRecord:
    workload = config.workload
    bench = BenchConfig(workload=workload, repetitions=config.repetitions, n_threads=source.n_threads)
    stage.step(
        f"Measuring speed and memory: prefill of {workload.prompt_tokens}, decode of {workload.generate_tokens} "
        f"tokens, medians of {config.repetitions}"
    )
    with stage.rounds_progress("speed") as progress:
        position = {str(file): index for index, file in enumerate(files)}
        record = run_benchmark(
            files,
            bench,
            progress=lambda file, done, total: progress(position[file] * total + done, len(files) * total),
        )
    for text in record.warnings:
        stage.say(f"warning: {text}")
    return record


def _candidates(
    source: Source, reference: Path, quality: dict[str, Any], record: BenchRecord
) -> tuple[Candidate, ...]:
    candidates = []
    for result in record.results:
        report = quality.get(Path(result.file).name)
        candidates.append(
            Candidate(
                label=source.type_of(result.file) if report else source.reference_label,
                mean_kld=report.mean_kld if report else 0.0,
                same_top_share=report.same_top_share if report else 1.0,
                is_reference=report is None,
                cost=result,
            )
        )
    return tuple(sorted(candidates, key=lambda candidate: candidate.cost.size_bytes))
