from __future__ import annotations

import sys

import numpy as np
import pytest

from qwen_edge.native import hugepages


@pytest.mark.skipif(sys.platform not in ("linux", "android"), reason="reads /proc")
def test_new_large_memory_is_found_and_keeps_its_content() -> None:
    before = hugepages.large_regions()
    with hugepages.huge_pages_for_new_memory():
        data = np.arange(8 << 20, dtype=np.int32)
    middle = data.ctypes.data + data.nbytes // 2
    regions = hugepages.large_regions()
    assert any(start <= middle < end for start, end in regions - before)
    assert all(end - start >= 8 << 20 for start, end in regions)
    assert np.array_equal(data, np.arange(8 << 20, dtype=np.int32))
