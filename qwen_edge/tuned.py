"""What tuning found for a file on a machine with a build: kept, and used when the file is loaded again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen_edge import device, paths
from qwen_edge.config import Affinity, KVType, LoadConfig, LoadMode, SpeculationMode, Switch
from qwen_edge.digests import FileIdentity, file_digest
from qwen_edge.engines.onnx_folder import is_onnx, read_folder
from qwen_edge.errors import ConfigError, QwenEdgeError, WriteError
from qwen_edge.files import atomic_path
from qwen_edge.native import library

_log = logging.getLogger(__name__)

_FORM = 1
"""Of the record; another one is not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of LoadConfig that decide speed and not what is answered; but for kv_type, which is only tried where
    that is asked for.

    Attributes:
        As in LoadConfig, threads as numbers.
    """

    n_threads: int
    n_prefill_threads: int | None = None
    affinity: Affinity = "none"
    n_batch: int = 512
    flash_attention: Switch = "off"
    kv_type: KVType = "f16"
    load_mode: LoadMode = "read"
    safe_kernels: bool | None = None

    def config(self, base: LoadConfig) -> LoadConfig:
        """Return `base` with these settings.

        Raises:
            ConfigError: They contradict what is in it.
        """
        return replace(base, **asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A turn of a conversation, as far as speed goes.

    Attributes:
        prompt_tokens: Read in the turn.
        answer_tokens: Written in the turn.
        depth: Tokens that the context holds before it.
        n_sessions: Conversations that do this at once.
    """

    prompt_tokens: int = 256
    answer_tokens: int = 256
    depth: int = 512
    n_sessions: int = 1

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 2), ("answer_tokens", 1), ("depth", 0), ("n_sessions", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= 1 << 20:
                raise ConfigError(f"{name} must be between {least} and {1 << 20} (not {value!r})")

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds after the turn."""
        return self.depth + self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRecord:
    """What one tuning found.

    Attributes:
        settings: The fastest.
        workload: What they are the fastest for.
        speeds: tokens/s of "default" and "tuned", each {"prefill": ..., "decode": ..., "turn_s": ...}.
        steps: What was tried, round by round: {"round", "tried": [{"settings", "turn_s", "kept"}]}.
        seconds: That it took.
        measured_at: Seconds since 1970.
        speculation: "prompt_lookup" where that won on the user's own prompts, else "off".
        speculation_gain: Time without over time with it, on those prompts; None where none were given.
    """

    settings: Settings
    workload: Workload
    speeds: dict[str, dict[str, float]]
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds: float
    measured_at: float
    speculation: SpeculationMode = "off"
    speculation_gain: float | None = None

    def to_json(self) -> str:
        """Return it as text that record_from_json() reads."""
        return json.dumps({"form": _FORM, **asdict(self)}, indent=1) + "\n"

    @property
    def gain(self) -> float:
        """How many times as fast a turn is as with the defaults."""
        return self.speeds["default"]["turn_s"] / self.speeds["tuned"]["turn_s"]


def apply_tuned(path: Path, config: LoadConfig, asked: Collection[str] = ()) -> LoadConfig:
    """Return the settings to load with: what tuning found in place of what nobody asked for.

    Args:
        path: A GGUF file, or an exported folder.
        config: What is asked for.
        asked: Names of settings that were given, defaults or not.

    Returns:
        `config` itself where nothing was found, it was found for another number of sessions, or it contradicts what was
        asked for.
    """
    if not config.tuned:
        return config
    record = find_record(path)
    if record is None:
        return config
    chosen = with_record(record, config, asked)
    _log.debug("tuned settings for %s: %s", path, chosen)
    return chosen


def with_record(record: TuneRecord, config: LoadConfig, asked: Collection[str] = ()) -> LoadConfig:
    """Return settings with those of a record in place of what nobody asked for; see apply_tuned()."""
    if record.workload.n_sessions != config.n_sessions:
        return config
    defaults = LoadConfig()
    free = {
        name: value
        for name, value in {**asdict(record.settings), "speculation": record.speculation}.items()
        if name not in asked and getattr(config, name) == getattr(defaults, name)
    }
    if "n_threads" not in free:
        free.pop("n_prefill_threads", None)
    try:
        return replace(config, **free)
    except ConfigError:
        return config


def find_record(path: Path) -> TuneRecord | None:
    """Return what was found for a file on this machine with this build; None where there is nothing.

    A file of which no record has the size is not hashed.
    """
    try:
        size = _size(path)
        if not any(paths.tune_folder().glob(f"{size}-*.json")):
            return None
        return record_from_json(_record_path(path))
    except (OSError, QwenEdgeError):
        return None


def remember(path: Path, record: TuneRecord) -> Path:
    """Keep a record in place of an earlier one; return its file.

    Raises:
        WriteError: It cannot be written.
        OSError, FormatError, ModelNotFoundError, UnsupportedError: The model cannot be read.
    """
    target = _record_path(path)
    try:
        with atomic_path(target) as part:
            part.write_text(record.to_json())
    except OSError as error:
        raise WriteError(
            f"{target} cannot be written: {error}", hint="Make room there, or set QWEN_EDGE_CACHE."
        ) from error
    return target


def forget(path: Path) -> bool:
    """Remove the record of a file; return whether there was one.

    Raises:
        As remember.
    """
    target = _record_path(path)
    there = target.exists()
    target.unlink(missing_ok=True)
    return there


def record_from_json(path: Path) -> TuneRecord | None:
    """Return the record in a file; None where it is missing, damaged or of another form."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        if data.pop("form") != _FORM:
            return None
        settings, workload = Settings(**data.pop("settings")), Workload(**data.pop("workload"))
        settings.config(LoadConfig(n_sessions=workload.n_sessions))
        record = TuneRecord(settings=settings, workload=workload, **data)
        return record if record.gain > 0 and record.speculation in ("off", "prompt_lookup") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, QwenEdgeError):
        return None


def _record_path(path: Path) -> Path:
    return paths.tune_folder() / f"{_size(path)}-{_key(path)}.json"


def _parts(path: Path) -> list[Path]:
    if is_onnx(path):
        return list(read_folder(path).files)
    return [Path(part) for part, _ in FileIdentity.of_parts(path).facts]


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in _parts(path))


def _key(path: Path) -> str:
    """Return what a finding is good for: the bytes of the model, this machine, this build."""
    if is_onnx(path):
        from qwen_edge.engines.onnx_runtime import version

        build = f"onnxruntime {version()}"
    else:
        build = library.library_fingerprint()
    facts = [
        *(file_digest(part) for part in _parts(path)),
        device.cpu_name(),
        *device.cpu_features(),
        str(device.usable_cores()),
        build,
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
