"""What is wrong here, what it costs, and what mends it: the checks behind `qwen-edge doctor`.

::

    examine()                        every check, each with its own outcome
      ├ machine.py                   Python, CPU, memory, extras, ONNX Runtime
      ├ situation.py                 builds, compiler; the trials in child processes
      │   └ native.py                checks of the native library
      ├ storage.py                   disk, cache, leftovers
      ├ hub.py                       does it answer
      └ fit.py                       memory against the planned model
    mend(report)                     mending.py

Nothing here raises because of what it finds, and nothing needs an extra.
"""

from __future__ import annotations

from collections.abc import Callable

from qwen_edge.doctor.report import Check, Fix, Report, guarded

__all__ = ["Check", "Fix", "Report", "examine"]


def examine(
    name: str | None = None,
    *,
    n_ctx: int,
    is_quick: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Look at everything.

    Args:
        name: Model or GGUF file that is to fit; None for the largest that does.
        n_ctx: Tokens that its context is to hold.
        is_quick: Measure no speeds.
        say: Told what is going on.
    """
    from qwen_edge.doctor import fit, hub, machine, native, storage

    say("looking at this machine")
    return Report(
        checks=(
            *guarded(native.GROUP, "library", lambda: native.check_native(is_quick=is_quick, say=say)),
            *guarded(machine.GROUP, "python", machine.check_python),
            *guarded(machine.GROUP, "cpu", machine.check_cpu),
            *guarded(machine.GROUP, "state", machine.check_state),
            *guarded(fit.GROUP, "fit", lambda: fit.check_fit(name, n_ctx)),
            *guarded(machine.PACKAGES, "qwen-edge", machine.check_extras),
            *guarded(machine.PACKAGES, "onnxruntime", machine.check_onnx),
            *guarded(storage.GROUP, "cache", storage.check_cache),
            *guarded(storage.GROUP, "hub-cache", storage.check_hub_cache),
            *guarded(storage.GROUP, "leftovers", storage.check_leftovers),
            *guarded(hub.GROUP, "hub", hub.check_hub),
        )
    )
