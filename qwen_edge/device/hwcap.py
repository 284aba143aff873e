"""Instruction sets of a 64-bit ARM processor, as the kernel tells each process in its auxiliary vector.

/proc/cpuinfo has the same as text. But user-mode emulators show that of the machine around them, and some kernels of
phones leave out what they do not know by name; the vector is what programs themselves go by.
"""

from __future__ import annotations

import platform
import struct

from qwen_edge.device.facts import Tree

# Source: Linux, include/uapi/linux/auxvec.h.
_AT_HWCAP, _AT_HWCAP2 = 16, 26

# Source: Linux, arch/arm64/include/uapi/asm/hwcap.h; the names are those of /proc/cpuinfo, Documentation/arch/arm64/elf_hwcaps.rst.
_HWCAP_BITS = {
    0: "fp", 1: "asimd", 3: "aes", 4: "pmull", 5: "sha1", 6: "sha2", 7: "crc32", 8: "atomics", 9: "fphp",
    10: "asimdhp", 12: "asimdrdm", 13: "jscvt", 14: "fcma", 15: "lrcpc", 16: "dcpop", 17: "sha3", 20: "asimddp",
    21: "sha512", 22: "sve", 23: "asimdfhm",
}  # fmt: skip
_HWCAP2_BITS = {1: "sve2", 9: "svei8mm", 12: "svebf16", 13: "i8mm", 14: "bf16", 23: "sme", 37: "sme2"}

_PAIR = struct.Struct("<QQ")


def is_arm64() -> bool:
    """Return whether this process runs as 64-bit ARM code."""
    return platform.machine() in ("aarch64", "arm64")


def hwcap_features(tree: Tree) -> frozenset[str]:
    """Return the features of the auxiliary vector of this process; none where it cannot be read.

    Args:
        tree: Where proc/self/auxv is.
    """
    try:
        return features_in_auxv((tree.root / "proc/self/auxv").read_bytes())
    except OSError:
        return frozenset()


def features_in_auxv(data: bytes) -> frozenset[str]:
    """Return the features that an auxiliary vector of 64-bit ARM names, as /proc/cpuinfo spells them.

    Args:
        data: Pairs of 64-bit numbers, type and value. What is cut off at the end is left out.

    Source: getauxval(3), proc(5).
    """
    whole = len(data) - len(data) % _PAIR.size
    values = dict(_PAIR.iter_unpack(data[:whole]))
    found: set[str] = set()
    for kind, names in ((_AT_HWCAP, _HWCAP_BITS), (_AT_HWCAP2, _HWCAP2_BITS)):
        bits = values.get(kind, 0)
        found.update(name for bit, name in names.items() if bits >> bit & 1)
    return frozenset(found)
