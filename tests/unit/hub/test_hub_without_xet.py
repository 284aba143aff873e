"""huggingface_hub without hf-xet, as on Android: qwen-edge fetches the bytes itself."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from hub_server import Hub

PULL = """
import sys
sys.modules["hf_xet"] = None  # an import of it fails
from qwen_edge import hub
print(hub.pull("qwen3-0.6b").path)
assert sys.modules["hf_xet"] is None
"""


def test_a_pull_needs_no_hf_xet(hub_server: Hub, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PULL],
        env={
            "HF_ENDPOINT": hub_server.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "QWEN_EDGE_CACHE": str(tmp_path / "cache"),
            "PATH": sysconfig.get_path("scripts"),
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "tokenizer.json").read_bytes() == (
        hub_server.folder / "Qwen/Qwen3-0.6B/tokenizer.json"
    ).read_bytes()
