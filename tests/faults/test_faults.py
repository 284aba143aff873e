"""Each fault answers as the table says, in words that a user can do something with."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_edge import errors
from tests.faults.documents import EXIT_CODES, RESULTS
from tests.faults.running import Fault, Outcome, can_mount, read_results, run_fault
from tests.faults.table import FAULTS, key
from tests.faults.world import Stock

KNOWN = read_results(RESULTS)
REFRESH = "where the new words are better, keep them: python -m tests.faults --write"


@pytest.mark.parametrize("fault", FAULTS, ids=key)
def test_fault(fault: Fault, tmp_path: Path, stock: Stock) -> None:
    if fault.small_disk_bytes is not None and not can_mount():
        pytest.skip("no file system can be mounted here")
    assert run_fault(fault, tmp_path, stock) == KNOWN[key(fault)], REFRESH


def test_every_fault_has_its_own_name_and_a_result() -> None:
    names = [key(fault) for fault in FAULTS]
    assert len(set(names)) == len(names) >= 60
    assert list(KNOWN) == names, REFRESH


@pytest.mark.parametrize("name", KNOWN)
def test_words(name: str) -> None:
    outcome = KNOWN[name]
    assert outcome.exit_code in EXIT_CODES
    for noise in ("Traceback", "Bug:", "[Errno", "Error(", " b'", "<class", "\x1b", "None"):
        assert noise not in outcome.message
    if "answers all the same" in name:
        assert outcome == Outcome(error="", exit_code=0, message="")
    elif outcome.exit_code == 141:
        assert outcome.message == ""
    elif outcome.exit_code in (130, 143):
        assert outcome.message in ("interrupted", "terminated")
    else:
        assert outcome.exit_code != 0
        assert outcome.message.startswith(("error: ", "Error: "))


def test_errors_of_the_library_are_ours() -> None:
    """The rest are click's, of what is typed, and the system's, of stdout."""
    foreign = {
        outcome.error
        for outcome in (KNOWN[key(fault)] for fault in FAULTS if fault.stdout == "pipe")
        if outcome.exit_code != 2 and outcome.error and not hasattr(errors, outcome.error)
    }
    assert not foreign
