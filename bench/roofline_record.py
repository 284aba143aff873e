"""The record of a roofline: what decode of each file reads, how fast it is, and how fast memory is. Schema "qwen-edge/roofline/1"."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen_edge.errors import ConfigError
from qwen_edge.files import atomic_path
from qwen_edge.gguf_header import GGUFHeader
from qwen_edge.memory_kernels import Kernels, rearranged_bytes

SCHEMA = "qwen-edge/roofline/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCost:
    """What one file holds, and what decode reads of it.

    Attributes:
        file_bytes: Its length.
        bits_per_weight: Bits of all tensors over the number of weights.
        read_bytes: Of the tensors that every token goes through: all but the embedding, of which it takes a row. A tied
            one is the head too, and read whole.
        kv_bytes_per_token: In F16.
        repacked_share: Of read_bytes, what this build's kernels rearrange while loading.
    """

    file_bytes: int
    bits_per_weight: float
    read_bytes: int
    kv_bytes_per_token: int
    repacked_share: float


def file_cost(header: GGUFHeader, kernels: Kernels) -> FileCost:
    """Return what a GGUF file costs.

    Args:
        header: Of the file.
        kernels: Of the build.
    """
    is_tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    read = [tensor for tensor in header.tensors if is_tied or tensor.name != "token_embd.weight"]
    read_bytes = sum(tensor.n_bytes for tensor in read)
    repacked = sum(
        tensor.n_bytes
        for tensor in read
        if len(tensor.shape) > 1
        and rearranged_bytes(tensor.type_name, tensor.shape[0], tensor.n_weights // tensor.shape[0], kernels)
        is not None
    )
    return FileCost(
        file_bytes=header.size_bytes,
        bits_per_weight=8 * header.tensor_bytes / header.n_weights,
        read_bytes=read_bytes,
        kv_bytes_per_token=_kv_bytes_per_token(header),
        repacked_share=repacked / read_bytes,
    )


def _kv_bytes_per_token(header: GGUFHeader) -> int:
    def number(key: str, default: int = 0) -> int:
        return int(header.metadata.get(f"{header.metadata['general.architecture']}.{key}", default))

    n_heads = number("attention.head_count")
    head_dim = number("embedding_length") // n_heads
    widths = number("attention.key_length", head_dim) + number("attention.value_length", head_dim)
    return 2 * number("block_count") * number("attention.head_count_kv", n_heads) * widths


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineTurn:
    """One measurement of a file.

    Attributes:
        prefill_tokens_per_s: Of a prompt.
        decode_tokens_per_s: One by one.
        bandwidth_bytes_per_s: Of the same threads over as many bytes as decode reads a token, right before.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    bandwidth_bytes_per_s: float


@dataclass(slots=True, kw_only=True)
class RooflineRow:
    """One file, and what was measured of it so far.

    Attributes:
        model: A name of the catalog, or the path of a file.
        type_name: A key of FILE_TYPES; of a given file what its header says.
        cost: None before the first turn.
        turns: In the order they were taken.
    """

    model: str
    type_name: str
    cost: FileCost | None = None
    turns: list[RooflineTurn] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median of a field of the turns."""
        return float(statistics.median(getattr(turn, name) for turn in self.turns))

    def bytes_per_token(self, settings: Mapping[str, Any]) -> float:
        """Return what decode reads a token: weights, and keys and values of the tokens before it, on average."""
        assert self.cost is not None, "Bug: nothing was measured of this row"
        before: float = settings["depth"] + (settings["n_decode"] + 1) / 2
        return self.cost.read_bytes + before * self.cost.kv_bytes_per_token

    def decode_share(self, settings: Mapping[str, Any]) -> float:
        """Return decode's bytes per second as a share of the memory's: 1.0 is the limit."""
        decoded = self.median("decode_tokens_per_s") * self.bytes_per_token(settings)
        return decoded / self.median("bandwidth_bytes_per_s")

    def to_dict(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row as in the schema: medians beside what they are of."""
        data: dict[str, Any] = {"model": self.model, "type": self.type_name}
        if self.cost is None or not self.turns:
            return {**data, "turns": []}
        return {
            **data,
            **asdict(self.cost),
            "bytes_per_token": round(self.bytes_per_token(settings)),
            "prefill_tokens_per_s": round(self.median("prefill_tokens_per_s"), 3),
            "decode_tokens_per_s": round(self.median("decode_tokens_per_s"), 3),
            "bandwidth_bytes_per_s": round(self.median("bandwidth_bytes_per_s")),
            "decode_share": round(self.decode_share(settings), 4),
            "turns": [asdict(turn) for turn in self.turns],
        }


@dataclass(slots=True, kw_only=True)
class RooflineRecord:
    """Rows of one build on one machine, at one setting.

    Attributes:
        machine: See device.describe_machine.
        build: The native library.
        settings: Fields of native.speed_trial.Trial.
        system_info: What the library says it was built with; "" before the first turn.
        rows: In the order they were asked for.
    """

    machine: dict[str, Any]
    build: dict[str, Any]
    settings: dict[str, Any]
    system_info: str = ""
    rows: list[RooflineRow] = field(default_factory=list)

    def row(self, model: str, type_name: str) -> RooflineRow:
        """Return the row of a model and type, made where there is none."""
        for row in self.rows:
            if (row.model, row.type_name) == (model, type_name):
                return row
        self.rows.append(RooflineRow(model=model, type_name=type_name))
        return self.rows[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in the schema."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "build": self.build,
            "settings": self.settings,
            "system_info": self.system_info,
            "rows": [row.to_dict(self.settings) for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Write the record; whole or as it was."""
        with atomic_path(path) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def take_up(self, path: Path) -> None:
        """Go on with the rows of an earlier run.

        Raises:
            ConfigError: They were taken with another build, on another machine or with other settings, or the file is no
                such record.
        """
        try:
            data = json.loads(path.read_text())
            rows = [_row_of(row) for row in data["rows"]]
            system_info = str(data["system_info"])
            here = {"machine": self.machine, "build": self.build, "settings": self.settings}
            other = [name for name, value in here.items() if data[name] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no record of a roofline", hint="Name another file.") from error
        if other:
            raise ConfigError(
                f"{path} holds figures with another {' and '.join(other)}",
                hint="Each has a file of its own: name another one.",
            )
        self.rows, self.system_info = rows, system_info


def _row_of(data: Mapping[str, Any]) -> RooflineRow:
    costs = {name: data[name] for name in FileCost.__dataclass_fields__ if name in data}
    return RooflineRow(
        model=data["model"],
        type_name=data["type"],
        cost=FileCost(**costs) if costs else None,
        turns=[RooflineTurn(**turn) for turn in data["turns"]],
    )
