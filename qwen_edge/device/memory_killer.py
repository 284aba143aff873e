"""How hard memory is to get at this moment, and what Android wants to see free before it ends programs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen_edge.device.facts import Tree, Unknown

_PRESSURE = "proc/pressure/memory"
_OOM_SCORE = "proc/self/oom_score_adj"
_PARAMETERS = "sys/module/lowmemorykiller/parameters"
# The kernel's driver counts in pages, and was taken out (Linux 4.12, Android 10) before there were any of 16 KiB.
_PAGE_BYTES = 4096
# What Android gives a program that was left in the background. Source: AOSP, ProcessList.java, CACHED_APP_MIN_ADJ.
_BACKGROUND_ADJ = 900
# The level of that score: 147,456 KiB, times 3/2 on 64 bits. ActivityManager.MemoryInfo.threshold is the same figure, "the
# threshold of availMem at which we consider memory to be low". Source: AOSP, ProcessList.java, mOomMinFreeHigh,
# updateOomLevels and getMemoryInfo.
_RESERVE_BYTES = 221_184 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPressure:
    """How much time was lost with waiting for memory.

    Attributes:
        some_percent: Share of the last ten seconds in which some task waited, 0 to 100.
        full_percent: Share in which all that had work to do waited.
    """

    some_percent: float
    full_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKiller:
    """What ends programs on Android when memory runs short.

    Attributes:
        reserve_bytes: What is to stay free, so that none is ended that was left in the background.
        told_by: "lowmemorykiller" where the kernel tells its levels, else "Android's default".
        levels: Of the kernel's driver, lowest score first: (score, bytes that are free when it begins with programs of
            that score). Newer systems have a program in its place (lmkd), which goes by pressure.
        oom_score_adj: Of this process: from -1000, never ended, to 1000, ended first. 0 is what is on the screen, 200 what
            shows a notification, 900 and more what was left.
    """

    reserve_bytes: int
    told_by: str
    levels: tuple[tuple[int, int], ...] | Unknown
    oom_score_adj: int | Unknown


def probe_pressure(tree: Tree) -> MemoryPressure | Unknown:
    """Read the pressure stall information of a Linux system. Source: Linux, Documentation/accounting/psi.rst."""
    shares = dict(re.findall(r"^(some|full) avg10=(\d+\.\d+) ", tree.text(_PRESSURE), re.MULTILINE))
    if "some" not in shares:
        return Unknown(tree.why_no_text(_PRESSURE))
    return MemoryPressure(some_percent=float(shares["some"]), full_percent=float(shares.get("full", 0)))


def probe_memory_killer(tree: Tree) -> MemoryKiller:
    """Return what Android's memory killer goes by; its default where the system does not tell.

    Source: Linux before 4.12, drivers/staging/android/lowmemorykiller.c; AOSP, system/memory/lmkd/README.md.
    """
    levels = _levels(tree)
    oom_score_adj = tree.number(_OOM_SCORE)
    reserve_bytes = 0
    if not isinstance(levels, Unknown):
        reserve_bytes = max((n_bytes for score, n_bytes in levels if score <= _BACKGROUND_ADJ), default=0)
    return MemoryKiller(
        reserve_bytes=reserve_bytes or _RESERVE_BYTES,
        told_by="lowmemorykiller" if reserve_bytes else "Android's default",
        levels=levels,
        oom_score_adj=Unknown(tree.why_no_text(_OOM_SCORE)) if oom_score_adj is None else oom_score_adj,
    )


def _levels(tree: Tree) -> tuple[tuple[int, int], ...] | Unknown:
    """Return (score, bytes) of each level; the driver's two files list one number a level."""
    scores, pages = (_numbers(tree.text(f"{_PARAMETERS}/{name}")) for name in ("adj", "minfree"))
    if scores and len(scores) == len(pages):
        return tuple((score, count * _PAGE_BYTES) for score, count in zip(scores, pages, strict=True))
    missing = "adj" if pages and not scores else "minfree"
    if scores and pages:
        return Unknown(f"the files of /{_PARAMETERS} do not fit each other")
    return Unknown(tree.why_no_text(f"{_PARAMETERS}/{missing}"))


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    return tuple(int(part) for part in parts) if all(part.strip().isdecimal() for part in parts) else ()
