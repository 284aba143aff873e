"""All faults, in the order of the table."""

from __future__ import annotations

from tests.faults.rows_bundle import ROWS as BUNDLE_ROWS
from tests.faults.rows_checkpoint import ROWS
from tests.faults.rows_files import GGUF_ROWS, ONNX_ROWS, QUANTIZE_ROWS
from tests.faults.rows_machine import (
    DISK_ROWS,
    ENDING_ROWS,
    HUB_ROWS,
    LIBRARY_ROWS,
    MEMORY_ROWS,
    PACKAGE_ROWS,
    RIGHTS_ROWS,
    TYPED_ROWS,
)
from tests.faults.running import Fault

FAULTS: tuple[Fault, ...] = (
    *ROWS,
    *GGUF_ROWS,
    *QUANTIZE_ROWS,
    *ONNX_ROWS,
    *DISK_ROWS,
    *RIGHTS_ROWS,
    *MEMORY_ROWS,
    *HUB_ROWS,
    *PACKAGE_ROWS,
    *BUNDLE_ROWS,
    *TYPED_ROWS,
    *ENDING_ROWS,
    *LIBRARY_ROWS,
)


def key(fault: Fault) -> str:
    """Return what names a fault in the results."""
    return f"{fault.group}: {fault.name}"
