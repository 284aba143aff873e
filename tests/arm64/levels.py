"""The processors that are emulated, and what each of them stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import click


@dataclass(frozen=True, kw_only=True)
class Level:
    """A set of CPU features.

    Attributes:
        name: As LEVELS and --levels have it.
        qemu_cpu: What QEMU_CPU says for it.
        part: The part number that /proc/cpuinfo gives it.
        module: The kernels of the portable library that have to be loaded on it.
        devices: Where such cores are found.
        runs_all: All fast tests run on it; on the others those that a processor can make fail.
    """

    name: str
    qemu_cpu: str
    part: int
    module: str
    devices: str
    runs_all: bool = False


# Parts: Linux, arch/arm64/include/asm/cputype.h. "max" is no core that was ever made; 0xd0f is ARM's own model.
LEVELS = (
    Level(
        name="cortex-a53",
        qemu_cpu="cortex-a53",
        part=0xD03,
        module="armv8.0_1",
        devices="Raspberry Pi 3 and 4, older and cheap phones",
    ),
    Level(
        name="cortex-a76",
        qemu_cpu="cortex-a76",
        part=0xD0B,
        module="armv8.2_2",
        devices="Raspberry Pi 5, phones since 2019",
        runs_all=True,
    ),
    Level(
        name="max-no-sve",
        qemu_cpu="max,sve=off",
        part=0xD0F,
        module="armv8.6_0",
        devices="phones and laptops with i8mm whose system leaves SVE off",
    ),
    Level(
        name="max",
        # Without that the vectors have 512 bits, which no phone has and QEMU computes 27 times as slowly. SME is used by
        # nothing here, and has vectors of its own.
        qemu_cpu="max,sve-default-vector-length=16,sme=off",
        part=0xD0F,
        module="armv8.6_2",
        devices="everything that QEMU has: i8mm, SVE and SVE2 with vectors of 128 bits, as in phones and Neoverse N2, V2",
    ),
)


def choose_levels(names: Iterable[str]) -> tuple[Level, ...]:
    """Return the levels of these names, in the table's order; all of them for no names.

    Raises:
        click.BadParameter: There is no such level.
    """
    wanted = set(names)
    known = {level.name for level in LEVELS}
    if unknown := sorted(wanted - known):
        raise click.BadParameter(f"no level {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return tuple(level for level in LEVELS if not wanted or level.name in wanted)


def cpuinfo(level: Level, features: Iterable[str], n_cores: int) -> str:
    """Return /proc/cpuinfo as a Linux on these cores writes it.

    QEMU up to 8.1 shows programs that of the machine around them, an x86: onnxruntime crashes on it.
    Source: Linux, arch/arm64/kernel/cpuinfo.c, c_show().

    Args:
        level: The emulated processor.
        features: Its features, as the kernel names them.
        n_cores: How many there are.
    """
    core = "\n".join(
        (
            "BogoMIPS\t: 100.00",
            f"Features\t: {' '.join(sorted(features))}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
            "CPU variant\t: 0x0",
            f"CPU part\t: {level.part:#05x}",
            "CPU revision\t: 0",
        )
    )
    return "".join(f"processor\t: {number}\n{core}\n\n" for number in range(n_cores))
