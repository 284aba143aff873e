"""How fast this machine reads memory from end to end, by number of threads: measured, and remembered.

Decoding reads every weight once a token, so bandwidth over the bytes of a model bounds its tokens per second.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_edge.device.facts import Unknown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MIN_BUFFER_BYTES = 256 << 20
_MAX_BUFFER_BYTES = 2 << 30
# Twice the last level: of a stream that returns to its beginning, nothing is still there.
_CACHES = 2
_SHARE_OF_FREE_MEMORY = 4
# numpy gives the interpreter lock away for a whole chunk; small enough that no thread ends late.
_CHUNK_BYTES = 4 << 20
# All windows together, and what may go by before: a virtual machine may get its memory from the host page by page.
_READING_S = 1.0
_FILLING_S = 0.6
_ROUNDS = 3
_PASSES = 9

NOT_MEASURED = Unknown("not measured yet: qwen-edge device measures it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadBandwidth:
    """What some threads read together.

    Attributes:
        n_threads: How many.
        bytes_per_s: Their sum.
    """

    n_threads: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Sequential reading, measured.

    Attributes:
        by_threads: Fewest threads first.
        buffer_bytes: What was read, over and over: what could be filled in time of what was wanted.
        last_level_bytes: Of the caches; None where the system does not tell.
        measured_at: Seconds since 1970.
    """

    by_threads: tuple[ThreadBandwidth, ...]
    buffer_bytes: int
    last_level_bytes: int | None
    measured_at: float

    @property
    def best(self) -> ThreadBandwidth:
        """The number of threads that read most."""
        return max(self.by_threads, key=lambda point: point.bytes_per_s)

    @property
    def may_be_cached(self) -> bool:
        """Whether the last-level cache could hold the buffer: the figures are then too high."""
        return self.last_level_bytes is not None and self.buffer_bytes < self.last_level_bytes


def buffer_size(last_level_bytes: int | None, free_bytes: int) -> int:
    """Return how long a stream to read: twice the last-level cache, 256 MiB to 2 GiB, a quarter of free memory at most."""
    wanted = min(max(_MIN_BUFFER_BYTES, _CACHES * (last_level_bytes or 0)), _MAX_BUFFER_BYTES)
    return max(_CHUNK_BYTES, min(wanted, free_bytes // _SHARE_OF_FREE_MEMORY))


def thread_counts(n_cores: int) -> tuple[int, ...]:
    """Return the numbers of threads to try: 1, 2, 4 ... and all cores."""
    return tuple(sorted({*(1 << i for i in range(n_cores.bit_length())), n_cores}))


def measure(
    n_cores: int,
    *,
    buffer_bytes: int,
    last_level_bytes: int | None,
    reading_s: float = _READING_S,
    filling_s: float = _FILLING_S,
) -> Bandwidth:
    """Read a buffer with different numbers of threads, in turns; the best turn of each counts.

    Args:
        n_cores: The most threads.
        buffer_bytes: What `buffer_size` says.
        last_level_bytes: For the record.
        reading_s: How long to read, all turns together.
        filling_s: How long to fill the buffer; what is not filled by then is not read.
    """
    import numpy as np

    buffer = _filled(np.empty(buffer_bytes // 8, np.uint64), filling_s)
    counts = thread_counts(n_cores)
    window_s = reading_s / (_ROUNDS * len(counts))
    best = dict.fromkeys(counts, 0.0)
    for _ in range(_ROUNDS):
        for n_threads in counts:
            best[n_threads] = max(best[n_threads], _read(np.array_split(buffer, n_threads), window_s))
    return Bandwidth(
        by_threads=tuple(ThreadBandwidth(n_threads=n, bytes_per_s=rate) for n, rate in best.items()),
        buffer_bytes=buffer.nbytes,
        last_level_bytes=last_level_bytes,
        measured_at=time.time(),
    )


def measure_passes(n_bytes: int, n_threads: int, *, passes: int = _PASSES) -> float:
    """Return the bytes per second of threads that read a buffer from end to end, again and again: of the median pass.

    What a cache keeps from one pass to the next counts, as it does for a model of that length. The median, because
    passes are disturbed both ways: other programs slow one in ten to half, and now and then the host's cache, or a
    clock read late, makes one 1.5 times as fast. Over 300 MB to 2.4 GB medians of 5 stayed within 3% of each other.
    numpy's sum reads as fast as a loop of 512-bit loads: 31 GB/s each on two cores of a Sapphire Rapids Xeon.

    Args:
        n_bytes: Length of the buffer; it is allocated and filled here.
        n_threads: Each reads its part.
        passes: How many are timed, after a first one that is not.
    """
    import numpy as np

    parts = np.array_split(np.ones(max(1, n_bytes // 8), np.uint64), n_threads)
    ends: list[float] = []
    together = threading.Barrier(n_threads, action=lambda: ends.append(time.perf_counter()))

    def run(part: NDArray[np.uint64]) -> None:
        words = _CHUNK_BYTES // part.itemsize
        for _ in range(passes + 1):
            together.wait()
            for start in range(0, len(part), words):
                part[start : start + words].sum()
        together.wait()

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    median_s = statistics.median(end - begin for begin, end in itertools.pairwise(ends[1:]))
    return sum(part.nbytes for part in parts) / median_s


def _filled(buffer: NDArray[np.uint64], limit_s: float) -> NDArray[np.uint64]:
    """Return as much of a buffer as was written in time: pages that were never written are all one page of zeros."""
    words = _CHUNK_BYTES // buffer.itemsize
    end = time.perf_counter() + limit_s
    for start in range(0, len(buffer), words):
        if time.perf_counter() > end and start:
            return buffer[:start]
        buffer[start : start + words] = 1
    return buffer


def _read(parts: list[NDArray[np.uint64]], window_s: float) -> float:
    """Let each thread read its part for a while; return bytes per second of all together."""
    read_bytes = [0] * len(parts)
    together = threading.Barrier(len(parts) + 1)

    def run(i: int, part: NDArray[np.uint64]) -> None:
        words = _CHUNK_BYTES // part.itemsize
        together.wait()
        end = time.perf_counter() + window_s
        while True:
            for start in range(0, len(part), words):
                chunk = part[start : start + words]
                chunk.sum()
                read_bytes[i] += chunk.nbytes
                if time.perf_counter() > end:
                    return

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(parts)]
    for thread in threads:
        thread.start()
    together.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(read_bytes) / (time.perf_counter() - began)


def record_path(folder: Path, facts: list[str]) -> Path:
    """Return the file that keeps the figures of a processor with these cores.

    Args:
        folder: Of such files.
        facts: What the figures depend on: processor, cores that may be used.
    """
    return folder / f"bandwidth-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"


def remember(path: Path, bandwidth: Bandwidth) -> None:
    """Keep the figures; where nothing can be written they are measured again next time."""
    from qwen_edge.errors import WriteError
    from qwen_edge.files import atomic_path

    try:
        with atomic_path(path) as part:
            part.write_text(json.dumps(asdict(bandwidth)))
    except (OSError, WriteError):
        return


def remembered(path: Path) -> Bandwidth | Unknown:
    """Return the figures that are kept; what is damaged counts as not there."""
    try:
        data: Any = json.loads(path.read_text())
        points = tuple(
            ThreadBandwidth(n_threads=int(point["n_threads"]), bytes_per_s=float(point["bytes_per_s"]))
            for point in data["by_threads"]
        )
        if not points or any(point.n_threads < 1 or not point.bytes_per_s > 0 for point in points):
            raise ValueError("no figures")
        last_level = data["last_level_bytes"]
        return Bandwidth(
            by_threads=points,
            buffer_bytes=int(data["buffer_bytes"]),
            last_level_bytes=None if last_level is None else int(last_level),
            measured_at=float(data["measured_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return NOT_MEASURED
