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
"""

from __future__ import annotations

from qwen_edge.hub.local import locate as locate
from qwen_edge.hub.local import locate_checkpoint as locate_checkpoint
from qwen_edge.hub.offers import Source as Source
from qwen_edge.hub.origin import cached_repository as cached_repository
from qwen_edge.hub.origin import origin_of as origin_of
from qwen_edge.hub.pulling import Hooks as Hooks
from qwen_edge.hub.pulling import PullPlan as PullPlan
from qwen_edge.hub.pulling import PullResult as PullResult
from qwen_edge.hub.pulling import pull as pull
from qwen_edge.hub.wheels import model_path as model_path
