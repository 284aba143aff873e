"""Merges and converts adapters with other programs: PyTorch, the `peft` package, llama.cpp's converter.

QWEN_EDGE_ORACLE_PYTHON=...     a Python that has torch and transformers, and peft for the tests that need it
QWEN_EDGE_LLAMA_CPP_SOURCE=...  llama.cpp's source tree, with convert_lora_to_gguf.py and gguf-py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.oracle.convert_reference import PYTHON_VARIABLE, SOURCE_VARIABLE

_MERGE_WITH_TORCH = """
import json, math, sys, torch
from safetensors.torch import load_file, save_file
checkpoint, adapter, target = json.loads(sys.argv[1])
config = json.load(open(adapter + "/adapter_config.json"))
weights = load_file(checkpoint + "/model.safetensors")
tensors = load_file(adapter + "/adapter_model.safetensors")
merged = {}
for name, a in tensors.items():
    if not name.endswith(".lora_A.weight"):
        continue
    key = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
    b = tensors[name.replace("lora_A", "lora_B")]
    scaling = config["lora_alpha"] / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
    value = weights[key].float() + scaling * (b.float() @ a.float())
    if config["use_dora"]:
        magnitude = tensors[name.replace("lora_A.weight", "lora_magnitude_vector")]
        value = (magnitude / torch.linalg.norm(value, dim=1)).unsqueeze(1) * value
    merged[key] = value.contiguous()
save_file(merged, target)
"""

_MERGE_WITH_PEFT = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
checkpoint, adapters, target = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
before = {name: value.clone() for name, value in model.state_dict().items()}
model = PeftModel.from_pretrained(model, adapters[0], adapter_name="a0")
for index, adapter in enumerate(adapters[1:], 1):
    model.load_adapter(adapter, adapter_name=f"a{index}")
names = [f"a{index}" for index in range(len(adapters))]
model.base_model.set_adapter(names)
model = model.merge_and_unload(adapter_names=names)
after = model.state_dict()
save_file({name: value.contiguous() for name, value in after.items() if not torch.equal(value, before[name])}, target)
"""

_MAKE_WITH_PEFT = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
checkpoint, settings, target = json.loads(sys.argv[1])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
for name, value in model.named_parameters():
    if "magnitude" in name:
        value.data *= 1 + 0.1 * torch.randn_like(value)
model.save_pretrained(target)
"""

_CONVERT_WITH_LLAMA_CPP = """
import runpy, sys
source = sys.argv.pop(1)
sys.path[:0] = [source + "/gguf-py", source]
sys.argv[0] = source + "/convert_lora_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def has_peft() -> bool:
    """Tell whether the oracle's Python has the `peft` package."""
    if PYTHON_VARIABLE not in os.environ:
        return False
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('peft') is None)"
    return subprocess.run([os.environ[PYTHON_VARIABLE], "-c", code]).returncode == 0


def merge_with_torch(checkpoint: Path, adapter: Path, target: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the changed matrices, computed by PyTorch in float32 from PEFT's definition."""
    _run(_MERGE_WITH_TORCH, json.dumps([str(checkpoint), str(adapter), str(target)]))
    return load_file(target)


def merge_with_peft(checkpoint: Path, adapters: list[Path], target: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the matrices that `merge_and_unload` changes, in float32."""
    _run(_MERGE_WITH_PEFT, json.dumps([str(checkpoint), [str(path) for path in adapters], str(target)]))
    return load_file(target)


def make_with_peft(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """Let PEFT make and save an adapter with random weights."""
    _run(_MAKE_WITH_PEFT, json.dumps([str(checkpoint), settings, str(folder)]))
    return folder


def convert_with_llama_cpp(adapter: Path, base: Path, target: Path, dtype: str) -> None:
    """Run llama.cpp's converter of adapters."""
    _run(
        _CONVERT_WITH_LLAMA_CPP,
        *(os.environ[SOURCE_VARIABLE], str(adapter), "--base", str(base)),
        *("--outfile", str(target), "--outtype", dtype),
    )


def _run(code: str, *arguments: str) -> None:
    result = subprocess.run(
        [os.environ[PYTHON_VARIABLE], "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    if result.returncode != 0:
        raise RuntimeError(f"the other program failed:\n{result.stderr[-3000:]}")
