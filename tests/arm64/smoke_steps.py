"""The steps of the smoke test, in order. Each makes or uses the files of those before it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_edge import device, load
from qwen_edge.bench.local_tools import WEATHER_TOOL, run_call
from qwen_edge.cli.main import main as command_line
from qwen_edge.config import GREEDY
from qwen_edge.convert import OnnxPrecision, convert_checkpoint, export_onnx, verify_file
from qwen_edge.native import library
from qwen_edge.quantize import quantize_file
from qwen_edge.types import Message
from tests.greedy import greedy

REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = REPOSITORY / "examples" / "tiny-qwen3"
GOLDEN = REPOSITORY / "tests" / "golden" / "greedy_tokens.json"

# Those with kernels of their own on ARM, repacked (dotprod, i8mm) or not.
TYPES = ("Q4_0", "Q4_K_M", "Q6_K", "Q8_0", "IQ4_NL")
# Near ties between two tokens are no ground to compare processors on: of these answers the model is sure in any type.
QUESTIONS = (
    "What is the capital of Greece?",
    "Extract name and age as JSON: Max is 30 years old.",
    "Repeat the word Karl.",
)
SYSTEM = "And it came to pass, that the king of Israel said unto him, Go in peace. " * 16
SETTINGS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a step that did not fail.

    Attributes:
        answers: What has to be the same on every machine, JSON-ready.
        facts: What may differ, for the report.
        said: A few words for the step's line.
    """

    answers: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Files:
    """Where the steps put their files, and which CPU module has to be loaded ("": any)."""

    folder: Path
    module: str

    def gguf(self, type_name: str) -> Path:
        return self.folder / f"tiny-{type_name.lower()}.gguf"

    def onnx(self, weights: str) -> Path:
        return self.folder / f"onnx-{weights}"

    @property
    def both_engines(self) -> tuple[Path, Path]:
        """A file for each, in F32: processors differ in the order of sums only."""
        return self.gguf("f32"), self.onnx("f32")


def kernels(files: Files) -> Outcome:
    """The library loads, with the kernels that fit this processor."""
    info = library.system_info()
    module = library.cpu_module()
    if files.module:
        assert module == files.module, f"the kernels are {module}, and {files.module} fits this processor"
    return Outcome(
        facts={"module": module, "system_info": info, "features": sorted(device.cpu_features())},
        said=str(module),
    )


def convert_to_gguf(files: Files) -> Outcome:
    """Files are equal to the byte everywhere."""
    for dtype in ("f32", "bf16"):
        convert_checkpoint(CHECKPOINT, files.gguf(dtype), dtype=dtype)  # type: ignore[arg-type]
    return Outcome(answers={dtype: _digest(files.gguf(dtype)) for dtype in ("f32", "bf16")})


def convert_to_onnx(files: Files) -> Outcome:
    """The weights are equal to the byte; the graph is onnx's own serialization."""
    for weights in ("f32", "int4", "int8"):
        export_onnx(CHECKPOINT, files.onnx(weights), precision=OnnxPrecision(weights=weights))  # type: ignore[arg-type]
    return Outcome(
        answers={name: _digest(files.onnx(name) / "model.onnx.data") for name in ("f32", "int4", "int8")}
    )


def quantize(files: Files) -> Outcome:
    """Sizes and types are equal; of the levels, a few may be rounded the other way."""
    reports = {name: quantize_file(files.gguf("bf16"), files.gguf(name), name, n_threads=1) for name in TYPES}
    return Outcome(
        answers={name: [report.size_bytes, report.type_counts] for name, report in reports.items()},
        facts={"sha256": {name: report.sha256 for name, report in reports.items()}},
    )


def verify(files: Files) -> Outcome:
    """Every quantized file computes what its checkpoint does, within the limits of its type."""
    paths = [*(files.gguf(name) for name in TYPES), files.onnx("int4")]
    reports = [verify_file(path, CHECKPOINT, n_threads=1) for path in paths]
    for report in reports:
        report.require()
    divergences = {report.path.name: float(report.mean_kld) for report in reports}
    return Outcome(facts={"mean_kld": divergences}, said=f"{len(paths)} files")


def golden_tokens(files: Files) -> Outcome:
    """Tokens are those of transformers, but where its two best logits are closer than rounding."""
    golden = json.loads(GOLDEN.read_text())
    closest = {files.gguf("f32"): 0.001, files.onnx("f32"): 0.001}
    for path, widest_gap in closest.items():
        with load(path, **SETTINGS) as model:
            # Every fifth: chats with and without thinking, and tool calls.
            for entry in golden["entries"][::5]:
                tokens = greedy(model, entry["prompt_tokens"], golden["max_tokens"])
                pairs = zip(tokens, entry["tokens"], entry["gaps"], strict=False)
                gap = next((gap for one, other, gap in pairs if one != other), 0.0)
                assert gap <= widest_gap, f"{path.name}: {tokens}, transformers: {entry['tokens']}"
    return Outcome()


def chat(files: Files) -> Outcome:
    """Every type gives the same answers."""
    answers = {}
    runs = [(files.gguf(name), 1) for name in ("bf16", *TYPES)]
    runs += [(files.onnx(weights), 1) for weights in ("f32", "int4", "int8")]
    runs += [(files.gguf("q4_0"), 2), (files.onnx("int4"), 2)]
    for path, n_threads in runs:
        with load(path, n_ctx=1024, n_threads=n_threads) as model, model.session() as session:
            answers[f"{path.name}, {n_threads}"] = [
                session.send(text, thinking="off", sampling=GREEDY, max_tokens=40).text for text in QUESTIONS
            ]
    return Outcome(answers=answers, said=f"{len(runs)} runs")


def think(files: Files) -> Outcome:
    """A thought, and one that is closed at its budget."""
    answers = []
    for path in files.both_engines:
        with load(path, **SETTINGS) as model:
            for thinking in ("on", 8):
                with model.session() as session:
                    reply = session.send(
                        "What is the capital of Ukraine?", thinking=thinking, sampling=GREEDY, max_tokens=80
                    )  # type: ignore[arg-type]
                assert reply.thinking
                assert reply.text
                answers.append([reply.thinking, reply.text])
    return Outcome(answers=answers)


def use_tools(files: Files) -> Outcome:
    """A call, its result, and the answer that takes it up."""
    answers = []
    for path in files.both_engines:
        with load(path, **SETTINGS) as model, model.session(tools=[WEATHER_TOOL]) as session:
            asked = session.send("How is the weather in Vienna?", thinking="off", sampling=GREEDY)
            (call,) = asked.tool_calls
            told = session.send([Message("tool", run_call(call))], thinking="off", sampling=GREEDY)
            answers.append([call.name, call.arguments, told.text])
    assert answers[0][:2] == ["get_weather", {"city": "Vienna"}]
    return Outcome(answers=answers)


@dataclass
class Person:
    name: str
    age: int


def extract(files: Files) -> Outcome:
    """An instance of a class: the grammar decides what may come."""
    answers = []
    for path in files.both_engines:
        with load(path, **SETTINGS) as model, model.session() as session:
            person = session.extract(
                "Max is 30 years old.", Person, thinking="off", sampling=GREEDY, max_tokens=60
            )
            answers.append(dataclasses.asdict(person))
    assert answers[0]["age"] == 30
    return Outcome(answers=answers)


def keep_sessions(files: Files) -> Outcome:
    """A restored session goes on as the one that was saved, and evaluates nothing again."""
    for path in files.both_engines:
        with load(path, prefix_cache=False, **SETTINGS) as model, model.session(system=SYSTEM) as session:
            session.send(QUESTIONS[0], thinking="off", sampling=GREEDY)
            session.save(files.folder / "kept.session")
            went_on = session.send(QUESTIONS[2], thinking="off", sampling=GREEDY).text
        with (
            load(path, prefix_cache=False, **SETTINGS) as model,
            model.restore_session(files.folder / "kept.session") as session,
        ):
            reply = session.send(QUESTIONS[2], thinking="off", sampling=GREEDY)
        assert session.rebuilt_because == ""
        assert reply.text == went_on
        assert reply.stats.cached_tokens > 256
    return Outcome()


def reuse_prefixes(files: Files) -> Outcome:
    """The second load finds the prompt's beginning on disk and says the same."""
    for path in files.both_engines:
        replies = []
        for _ in range(2):
            with load(path, **SETTINGS) as model, model.session(system=SYSTEM) as session:
                replies.append(session.send(QUESTIONS[0], thinking="off", sampling=GREEDY))
        assert [reply.stats.prefix_cache for reply in replies] == ["miss", "hit"]
        assert replies[0].text == replies[1].text
    return Outcome()


def measure(files: Files) -> Outcome:
    """`bench` runs through; its figures are no speeds of anything under emulation."""
    workload = ("--prompt-tokens", "32", "--generate-tokens", "4", "--repetitions", "1", "--threads", "1")
    record = json.loads(_command("bench", *map(str, files.both_engines), *workload, "--format", "json"))
    for result in record["results"]:
        assert result["prefill_tokens_per_s"]["median"] > 0
        assert result["decode_tokens_per_s"]["median"] > 0
        assert result["memory"]["peak_rss_bytes"] > result["size_bytes"]
    return Outcome(
        answers=[[result["engine"], result["workload"]] for result in record["results"]],
        facts={"machine": record["machine"]},
    )


def run_commands(files: Files) -> Outcome:
    """The command line in a process of its own, as a user has it."""
    sure = ("--temperature", "0", "--thinking", "off")
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "qwen_edge",
            "run",
            str(files.gguf("q4_0")),
            QUESTIONS[0],
            *sure,
            "--threads",
            "1",
        ],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    assert "Athens" in said
    tools = [sys.executable, str(REPOSITORY / "examples" / "tools.py"), str(files.gguf("bf16"))]
    assert "Vienna" in subprocess.run(tools, stdout=subprocess.PIPE, check=True, text=True).stdout
    return Outcome()


def examine(files: Files) -> Outcome:
    """`doctor --quick`: plain and fast kernels of every type that is tried give what they should."""
    found = json.loads(_command("doctor", "--quick", "--format", "json"))
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["selftest"]["status"] == "ok", checks["selftest"]["found"]
    return Outcome(facts={"checks": found["checks"]}, said=checks["selftest"]["found"])


STEPS: tuple[Callable[[Files], Outcome], ...] = (
    kernels,
    convert_to_gguf,
    convert_to_onnx,
    quantize,
    verify,
    golden_tokens,
    chat,
    think,
    use_tools,
    extract,
    keep_sessions,
    reuse_prefixes,
    measure,
    run_commands,
    examine,
)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command(*arguments: str) -> str:
    """Return what a command prints; it has to succeed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = command_line(list(arguments))
    assert code == 0, f"{' '.join(arguments)}: exit code {code}"
    return printed.getvalue()
