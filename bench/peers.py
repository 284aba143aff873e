"""Other programs that run the same files, timed under the same settings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.config import LoadMode, Switch
from qwen_edge.errors import ConfigError, NativeError

# Source: llama-bench --help (tools/llama-bench/llama-bench.cpp). "none" reads the file, as our load mode "read" does.
_LOAD_MODES: dict[LoadMode, str] = {"read": "none", "mmap": "mmap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpeed:
    """One run of another program.

    Attributes:
        prefill_tokens_per_s: pp at the depth.
        decode_tokens_per_s: tg at the depth.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def run_llama_bench(
    program: Path,
    file: Path,
    *,
    prompt_tokens: int,
    generate_tokens: int,
    depth: int,
    n_threads: int,
    flash_attention: Switch,
    load_mode: LoadMode = "read",
) -> PeerSpeed:
    """Run llama-bench once: its own warm-up, then one repetition of prefill and of decode.

    Args:
        program: The executable.
        file: A GGUF file.
        prompt_tokens: pp.
        generate_tokens: tg.
        depth: Tokens in the KV cache before each.
        n_threads: CPU threads.
        flash_attention: "on" or "off".
        load_mode: As in LoadConfig.

    Raises:
        ConfigError: There is no such program.
        NativeError: It fails, or prints something else than its two results.
    """
    command = [
        str(program), "--model", str(file), "-p", str(prompt_tokens), "-n", str(generate_tokens), "-d", str(depth),
        "-t", str(n_threads), "-fa", flash_attention, "-lm", _LOAD_MODES[load_mode], "-r", "1", "-o", "json",
    ]  # fmt: skip
    return parse_llama_bench(output_of(command))


def output_of(command: Sequence[str]) -> str:
    """Run another program and return what it printed.

    Raises:
        ConfigError: There is no such program.
        NativeError: It fails.
    """
    program = Path(command[0])
    try:
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ConfigError(f"cannot run {program}: {error.strerror}") from error
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NativeError(f"{program.name} failed with {run.returncode}: {reason}")
    return run.stdout


def parse_llama_bench(output: str) -> PeerSpeed:
    """Return the two speeds of a llama-bench run with `-o json`.

    Raises:
        NativeError: The output holds something else.
    """
    try:
        rows = json.loads(output)
        prefill = [row["avg_ts"] for row in rows if row["n_gen"] == 0]
        decode = [row["avg_ts"] for row in rows if row["n_prompt"] == 0]
        (prefill_speed,), (decode_speed,) = prefill, decode
    except (ValueError, KeyError, TypeError) as error:
        raise NativeError(f"llama-bench printed something else than two results: {output[:200]!r}") from error
    return PeerSpeed(prefill_tokens_per_s=float(prefill_speed), decode_tokens_per_s=float(decode_speed))
