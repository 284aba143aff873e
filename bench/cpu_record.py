"""What a CPU computed: logits of fixed prompts, cut down to what a comparison needs, in one .npz file.

Of each position the file keeps the likeliest tokens, an even sample of all others, and the logarithm of the sum that
probabilities are divided by: 3 KB where a row of Qwen's vocabulary has 608.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import FormatError
from qwen_edge.files import atomic_path, reading

SCHEMA = "qwen-edge/across-cpus/1"
_MOST_COLUMNS = 512
_TOP_TOKENS = 64
_GREEDY_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Logits of n positions, in part.

    Attributes:
        columns: int32 [c], ascending: tokens whose logits are kept of every position. One vocabulary, one choice.
        sampled: float32 [n, c], their logits.
        top_tokens: int32 [n, k], the likeliest of all tokens, best first, of equal ones the lower id.
        top_logits: float32 [n, k], their logits.
        log_totals: float64 [n], log(sum(exp(logit))) over the whole vocabulary.
    """

    columns: NDArray[np.int32]
    sampled: NDArray[np.float32]
    top_tokens: NDArray[np.int32]
    top_logits: NDArray[np.float32]
    log_totals: NDArray[np.float64]

    @classmethod
    def from_logits(cls, logits: NDArray[np.float32]) -> Self:
        """Keep what is needed of whole rows: float32 [n, n_vocab]."""
        columns = sampled_columns(logits.shape[1])
        tokens, best = top_of(logits, _TOP_TOKENS)
        wide = logits.astype(np.float64)
        highest = wide.max(axis=1, keepdims=True)
        # A kernel that is wrong may give infinite values: the comparison says so.
        with np.errstate(invalid="ignore"):
            totals = np.log(np.exp(wide - highest).sum(axis=1)) + highest[:, 0]
        return cls(
            columns=columns,
            sampled=logits[:, columns],
            top_tokens=tokens,
            top_logits=best,
            log_totals=totals,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Greedy:
    """What each of p prompts was answered with, where every step takes the likeliest token.

    Attributes:
        tokens: int32 [p, steps, k], the likeliest of each step, best first; the first of them was taken.
        logits: float32 [p, steps, k], theirs.
    """

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One file, evaluated with one kind of kernels.

    Attributes:
        file: Its name, which finds its like in another record.
        sha256: Digest of the weights.
        engine: "llama.cpp" or "onnxruntime".
        kernels: "fast"; "plain" for llama.cpp without what it rearranges matrices for.
        rounding: How the coarsest of the matrices has its inputs rounded; see cpu_worker.rounding_of().
        settings: What the engine ran with.
        prompts: Token ids of each prompt.
        prefill: Each prompt in one call: products of matrices. The positions of all prompts, one behind the other.
        decode: The same prompts token by token: products of a matrix and a vector. The same positions.
        greedy: How each prompt goes on.
    """

    file: str
    sha256: str
    engine: str
    kernels: str
    rounding: str
    settings: dict[str, Any]
    prompts: tuple[tuple[int, ...], ...]
    prefill: Rows
    decode: Rows
    greedy: Greedy

    def save(self, path: Path) -> None:
        """Write it to a file of its own."""
        _write(path, self._facts(), self._arrays())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what save() wrote."""
        facts, arrays = _read(path)
        return cls._from(facts, arrays)

    def _facts(self) -> dict[str, Any]:
        names = ("file", "sha256", "engine", "kernels", "rounding", "settings", "prompts")
        return {name: getattr(self, name) for name in names}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        parts = {"prefill": self.prefill, "decode": self.decode, "greedy": self.greedy}
        return {
            f"{part}.{name}": getattr(value, name)
            for part, value in parts.items()
            for name in _fields(type(value))
        }

    @classmethod
    def _from(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        def part(name: str, kind: type[Any]) -> Any:
            return kind(**{each: arrays[f"{name}.{each}"] for each in _fields(kind)})

        return cls(
            **{**facts, "prompts": tuple(map(tuple, facts["prompts"]))},
            prefill=part("prefill", Rows),
            decode=part("decode", Rows),
            greedy=part("greedy", Greedy),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CpuRecord:
    """What one CPU computed of some files.

    Attributes:
        label: What the CPU is called in tables.
        machine: Facts about machine and native library, JSON-ready.
        runs: One for each file and kind of kernels.
        failures: What became of those that gave none: "NAME, KERNELS kernels: why".
    """

    label: str
    machine: dict[str, Any]
    runs: tuple[Run, ...]
    failures: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write the record; the old file stays until the new one is whole."""
        facts = {
            "schema": SCHEMA,
            "label": self.label,
            "machine": self.machine,
            "runs": [run._facts() for run in self.runs],
            "failures": self.failures,
        }
        arrays = {
            f"{index}.{name}": array
            for index, run in enumerate(self.runs)
            for name, array in run._arrays().items()
        }
        _write(path, facts, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what save() wrote.

        Raises:
            ReadError: It may not be read.
            FormatError: It is not such a file, or is damaged.
        """
        facts, arrays = _read(path)
        if facts.get("schema") != SCHEMA:
            raise FormatError(f"{path} has the schema {facts.get('schema')!r}; {SCHEMA!r} is known here")
        try:
            runs = [
                Run._from(
                    each,
                    {
                        name.partition(".")[2]: array
                        for name, array in arrays.items()
                        if name.startswith(f"{index}.")
                    },
                )
                for index, each in enumerate(facts["runs"])
            ]
            return cls(
                label=facts["label"],
                machine=facts["machine"],
                runs=tuple(runs),
                failures=tuple(facts["failures"]),
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path} is damaged: {error} is missing or not what it should be") from error


def sampled_columns(n_vocab: int) -> NDArray[np.int32]:
    """Return the tokens whose logits are kept of every position: evenly spread, all of a small vocabulary."""
    count = min(n_vocab, _MOST_COLUMNS)
    return (np.arange(count, dtype=np.int64) * n_vocab // count).astype(np.int32)


def top_of(
    logits: NDArray[np.float32], count: int = _GREEDY_TOKENS
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the likeliest tokens of each row, best first, and their logits.

    Args:
        logits: float32 [n, n_vocab].
        count: How many, or all of a smaller vocabulary.

    Returns:
        int32 and float32 [n, count].
    """
    tokens = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return tokens.astype(np.int32), np.take_along_axis(logits, tokens, axis=1)


def _fields(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _write(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, facts=text, **arrays)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with reading(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts: dict[str, Any] = json.loads(arrays.pop("facts").tobytes())
    except FileNotFoundError:
        raise FormatError(
            f"{path} is not there", hint="Make it with: across_cpus record FILE -o RECORD"
        ) from None
    except (ValueError, KeyError, EOFError, BadZipFile, AttributeError) as error:
        raise FormatError(
            f"{path} is not a record of across_cpus, or is damaged: {error}",
            hint="Make it again with: across_cpus record FILE -o RECORD",
        ) from error
    return facts, arrays
