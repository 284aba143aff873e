"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_bytes(text: str) -> int:
    """Return the bytes that "1GB", "512 MB", "1.5GiB" or a number say.

    Raises:
        ValueError: It is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if found is None:
        raise ValueError(f"{text!r} is no size, as in 1GB, 512MB or 1.5GiB.")
    return int(float(found[1]) * _UNITS[found[2] or ""])
