"""Compares our GGUF file with that of llama.cpp's own converter: tensors bit by bit, metadata key by key.

    QWEN_EDGE_LLAMA_CPP_SOURCE=...  llama.cpp's source tree, with convert_hf_to_gguf.py and gguf-py
    QWEN_EDGE_ORACLE_PYTHON=...     a Python that has torch and transformers, for that converter
    python -m tests.oracle.convert_reference CHECKPOINT [--dtype bf16]

Prints every difference as JSON and exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qwen_edge.convert import convert_checkpoint
from tests.gguf_difference import compare_files

SOURCE_VARIABLE = "QWEN_EDGE_LLAMA_CPP_SOURCE"
PYTHON_VARIABLE = "QWEN_EDGE_ORACLE_PYTHON"

# llama.cpp's converter knows vocabularies by a hash of token ids and refuses others, such as tiny-qwen3's.
# The fallback applies to those only: of the full Qwen vocabulary its own answer is taken.
_RUN_CONVERTER = """
import runpy, sys
source = sys.argv.pop(1)
sys.path[:0] = [source + "/gguf-py", source]
from conversion.base import TextModel
recognize = TextModel.get_vocab_base_pre
def recognize_or_assume_qwen2(self, tokenizer):
    try:
        return recognize(self, tokenizer)
    except NotImplementedError:
        return "qwen2"
TextModel.get_vocab_base_pre = recognize_or_assume_qwen2
sys.argv[0] = source + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def is_available() -> bool:
    """Tell whether the environment names the reference converter."""
    return SOURCE_VARIABLE in os.environ and PYTHON_VARIABLE in os.environ


def convert_with_llama_cpp(checkpoint: Path, target: Path, dtype: str) -> None:
    """Run llama.cpp's converter."""
    source, python = os.environ[SOURCE_VARIABLE], os.environ[PYTHON_VARIABLE]
    result = subprocess.run(
        [python, "-c", _RUN_CONVERTER, source, str(checkpoint), "--outfile", str(target), "--outtype", dtype],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if result.returncode != 0:
        raise RuntimeError(f"llama.cpp's converter failed:\n{result.stderr[-3000:]}")


def compare_converters(checkpoint: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """Convert with both and return `compare_files` of ours and theirs."""
    ours, theirs = folder / f"ours-{dtype}.gguf", folder / f"theirs-{dtype}.gguf"
    convert_checkpoint(checkpoint, ours, dtype=dtype)  # type: ignore[arg-type]
    convert_with_llama_cpp(checkpoint, theirs, dtype)
    return compare_files(ours, theirs)


def main() -> int:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="bf16")
    options = parser.parse_args()
    if not is_available():
        parser.error(f"set {SOURCE_VARIABLE} and {PYTHON_VARIABLE}")
    with tempfile.TemporaryDirectory() as folder:
        result = compare_converters(options.checkpoint, options.dtype, Path(folder))
    print(json.dumps(result, indent=2))  # noqa: T201
    return 1 if result["tensor_differences"] or result["key_differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
