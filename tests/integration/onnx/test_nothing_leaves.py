"""ONNX Runtime is told to keep its telemetry to itself, and a process that chats with it has no socket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edge.engines import onnx_runtime

CHAT = """
import json, os, sys
import qwen_edge
with qwen_edge.load(sys.argv[1], n_ctx=256, n_threads=2, prefix_cache=False) as model, model.session() as session:
    text = session.send("Say Anna.", thinking="off", sampling=qwen_edge.SamplingConfig(temperature=0)).text
    here = "/proc/self/fd"
    targets = []
    for name in os.listdir(here):
        try:
            targets.append(os.readlink(os.path.join(here, name)))
        except OSError:
            pass  # the descriptor of the listing itself
print(json.dumps([text, targets]))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux")
def test_a_chat_opens_no_socket(tiny_onnx: Path) -> None:
    result = subprocess.run([sys.executable, "-c", CHAT, str(tiny_onnx)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    text, targets = json.loads(result.stdout)
    assert text == "Anna"
    assert targets
    assert not [target for target in targets if target.startswith("socket:")]


def test_telemetry_is_switched_off_when_the_runtime_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    calls = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("off"))
    onnx_runtime._runtime.cache_clear()
    onnx_runtime.version()
    assert calls == ["off"]
