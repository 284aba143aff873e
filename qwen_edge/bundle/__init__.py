"""Bundles: a folder with all that a device needs to run one model offline.

::

    make_bundle(source, folder)                    writing.py
      ├ describe: facts of the model and its chat  facts.py, golden.py
      ├ copy_hashed: the model, and its tensors    sections.py
      ├ tokenizer, licence                         companions.py
      ├ llama-rn.json, flags of llama.cpp          apps.py
      ├ requirements.lock                          lockfile.py
      └ README.md, LICENSE                         papers.py
    bundle.json                                    record.py: its form; reading one is reading a stranger's file
    check_bundle(folder)                           checking.py, file_checks.py: what drifted, in a report.py
    load(folder)                                   applying.py: the settings that a bundle brings

The record is core: names of models are resolved with it. The rest stands beside tune and doctor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.bundle.checking import check_bundle as check_bundle
    from qwen_edge.bundle.record import Bundle as Bundle
    from qwen_edge.bundle.record import read_bundle as read_bundle
    from qwen_edge.bundle.report import BundleReport as BundleReport
    from qwen_edge.bundle.writing import BundleRequest as BundleRequest
    from qwen_edge.bundle.writing import make_bundle as make_bundle

_HOMES = {
    "Bundle": ".record",
    "BundleReport": ".report",
    "BundleRequest": ".writing",
    "check_bundle": ".checking",
    "make_bundle": ".writing",
    "read_bundle": ".record",
}

__all__ = ["Bundle", "BundleReport", "BundleRequest", "check_bundle", "make_bundle", "read_bundle"]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
