"""Faults of the machine: disk, rights, memory, network, missing packages; and of what is typed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qwen_edge.catalog import MODELS
from qwen_edge.trial_model import write_trial_outline
from tests.adapters import write_adapter
from tests.faults.running import SMALL_DISK, Fault, nothing
from tests.faults.world import REPOSITORY, World
from tests.hub_server import Fault as HubFault

_RUN = "run m.gguf Hi --max-tokens 4 --threads 1 --n-ctx 256"
_PULL = f"pull {REPOSITORY} --source huggingface"
_LARGE = MODELS["qwen3-1.7b"].shape
assert _LARGE is not None
_LOOKS_FREE = {"FAULT_DISK_LOOKS_FREE": "1"}
_NO_HOME = {"HOME": "", "QWEN_EDGE_CACHE": "", "XDG_CACHE_HOME": "", "HF_HOME": "", "FAULT_NO_USER": "1"}
_KB, _MB = 1 << 10, 1 << 20


def _row(
    group: str, name: str, command: str, make: Callable[[World], object] = nothing, **more: object
) -> Fault:
    return Fault(group=group, name=name, make=make, command=command, **more)  # type: ignore[arg-type]


def _take(*names: str) -> Callable[[World], None]:
    def make(world: World) -> None:
        for name in names:
            world.take(name)

    return make


def _disk(name: str, command: str, make: Callable[[World], object], size_bytes: int, **more: object) -> Fault:
    return _row("Disk", name, command, make, small_disk_bytes=size_bytes, **more)


def _library(
    group: str, name: str, python: str, make: Callable[[World], object] = nothing, **more: object
) -> Fault:
    return Fault(group=group, name=name, python=python, make=make, **more)  # type: ignore[arg-type]


def _in_use(target: str, is_folder: bool = False) -> Callable[[World], None]:
    """Return what starts another run that is writing a target, until the fault is over."""

    def make(world: World) -> None:
        world.take("ckpt")
        world.take("m.gguf")
        form = "atomic_folder" if is_folder else "atomic_path"
        code = f"import sys, time; from qwen_edge.files import {form} as at\nwith at({target!r}):\n  print(1, flush=True); time.sleep(99)"
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=world.folder,
                                 env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
        world.closing.callback(lambda: (other.kill(), other.communicate(), [path.unlink() if path.is_file() else path.rmdir() for path in world.folder.glob(".*.part")]))  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()

    return make


def _served(*faults: HubFault) -> Callable[[World], None]:
    return lambda world: world.serve(*faults)


def _closed_folder(name: str) -> Callable[[World], None]:
    def make(world: World) -> None:
        _take("m.gguf", "ckpt")(world)
        (world.folder / name).mkdir()
        (world.folder / name).chmod(0o555)

    return make


DISK_ROWS = (
    _disk("too small for a GGUF file", f"convert ckpt -o {SMALL_DISK}/m.gguf", _take("ckpt"), _MB),
    _disk("too small for an ONNX folder", f"convert ckpt --to onnx -o {SMALL_DISK}/m", _take("ckpt"), _MB),
    _disk("too small for a quantized file", f"quantize m.gguf -t q8_0 -o {SMALL_DISK}/x.gguf", _take("m.gguf"), 16 * _KB),
    _disk("too small for a quantized folder", f"quantize onnx -t int4 -o {SMALL_DISK}/x", _take("onnx"), _MB),
    _disk("full while a GGUF file is written", f"convert ckpt -o {SMALL_DISK}/m.gguf", _take("ckpt"), 64 * _KB, env=_LOOKS_FREE),
    _disk("full while an adapter is written", f"convert adapter --base ckpt -o {SMALL_DISK}/a.gguf",
          lambda world: write_adapter(world.folder / "adapter", world.checkpoint()), 4 * _KB, env=_LOOKS_FREE),
    _disk("full while an ONNX folder is written", f"convert ckpt --to onnx -o {SMALL_DISK}/m", _take("ckpt"), 64 * _KB, env=_LOOKS_FREE),
    _disk("full while a file is quantized", f"quantize m.gguf -t q8_0 -o {SMALL_DISK}/x.gguf", _take("m.gguf"), 16 * _KB, env=_LOOKS_FREE),
    _disk("full while a folder is quantized", f"quantize onnx -t int4 -o {SMALL_DISK}/x", _take("onnx"), 64 * _KB, env=_LOOKS_FREE),
    _disk("too small for a download", _PULL, _served(), _MB, env={"HF_HOME": SMALL_DISK, "QWEN_EDGE_CACHE": f"{SMALL_DISK}/q"}),
    _disk("full while a file is fetched", _PULL, _served(), 64 * _KB, env={**_LOOKS_FREE, "HF_HOME": SMALL_DISK, "QWEN_EDGE_CACHE": f"{SMALL_DISK}/q"}),
    _disk("full where probe and prefix cache would go (it answers all the same)", _RUN.replace("256", "512") + " --system " + "word" * 80, _take("m.gguf"), 4 * _KB,
          env={"QWEN_EDGE_CACHE": f"{SMALL_DISK}/q"}),
    Fault(group="Disk", name="full while a session is saved", make=_take("m.gguf"), small_disk_bytes=4 * _KB,
          python="import qwen_edge\nwith qwen_edge.load('m.gguf', n_threads=1, n_ctx=256, safe_kernels=False) as model, model.session() as session:\n"
          f"    session.send('Hi', max_tokens=4)\n    session.save('{SMALL_DISK}/s.session')"),
    _row("Disk", "files may not grow (ulimit -f)", "quantize m.gguf -t q8_0 -o x.gguf", _take("m.gguf"), limits={resource.RLIMIT_FSIZE: 16 * _KB}),
)  # fmt: skip

RIGHTS_ROWS = (
    _row("Folders and rights", "a target folder that may not be written", "convert ckpt -o out/m.gguf", _closed_folder("out"), is_no_root=True),
    _row("Folders and rights", "a target folder of ONNX that may not be written", "convert ckpt --to onnx -o out/m", _closed_folder("out"), is_no_root=True),
    _row("Folders and rights", "a target folder that may not be written, to quantize", "quantize m.gguf -t q8_0 -o out/x.gguf", _closed_folder("out"), is_no_root=True),
    _row("Folders and rights", "a target folder that is a file", "convert ckpt -o ckpt/config.json/m.gguf", _take("ckpt"), leaves=("ckpt/config.json",)),
    _row("Folders and rights", "a target that is a folder", "convert ckpt -o ckpt", _take("ckpt")),
    _row("Folders and rights", "a target that is there", "convert ckpt -o x.gguf", lambda world: (world.take("ckpt"), (world.folder / "x.gguf").write_text("old")), leaves=("x.gguf",)),
    _row("Folders and rights", "a target that is a file of the source", "convert ckpt -o ckpt/model-00001-of-00002.safetensors --force", _take("ckpt"), leaves=("ckpt/model-00001-of-00002.safetensors",)),
    _row("Folders and rights", "a name that is too long", f"convert ckpt -o {'m' * 252}.gguf", _take("ckpt")),
    _row("Folders and rights", "a name that is too long, to quantize", f"quantize m.gguf -t q8_0 -o {'m' * 252}.gguf", _take("m.gguf")),
    _row("Folders and rights", "a cache that may not be written (it answers all the same)", _RUN, _closed_folder("cache"), is_no_root=True),
    _row("Folders and rights", "a cache that may not be written, to pull", _PULL, lambda world: (world.serve(), _closed_folder("cache")(world)), is_no_root=True),
    _row("Folders and rights", "a cache that is a file (it answers all the same)", _RUN, lambda world: (world.take("m.gguf"), (world.folder / "cache").write_text("mine")), env={"HF_HOME": "hf"}),
    _row("Folders and rights", "no HOME (it answers all the same)", _RUN, _take("m.gguf"), env=_NO_HOME),
    _row("Folders and rights", "no HOME, to pull", _PULL, _served(), env={**_NO_HOME, "HF_HUB_OFFLINE": "0"}),
    _row("Folders and rights", "another run converts to the target", "convert ckpt -o x.gguf", _in_use("x.gguf")),
    _row("Folders and rights", "another run converts to the folder", "convert ckpt --to onnx -o x", _in_use("x", is_folder=True)),
    _row("Folders and rights", "another run quantizes to the target", "quantize m.gguf -t q8_0 -o x.gguf", _in_use("x.gguf")),
)  # fmt: skip

MEMORY_ROWS = (
    _row("Memory and context", "a context larger than memory", "run m.gguf Hi --n-ctx 16000000 --threads 1", _take("m.gguf")),
    _row("Memory and context", "a context larger than an ONNX graph has positions for", "run onnx Hi --n-ctx 4096 --threads 1", _take("onnx")),
    _row("Memory and context", "a context larger than ulimit -v", "run m.gguf Hi --n-ctx 4000000 --threads 1", _take("m.gguf"), limits={resource.RLIMIT_AS: 2500 * _MB}),
    _row("Memory and context", "a model larger than ulimit -v", _RUN, lambda world: write_trial_outline(world.take("m.gguf"), _LARGE, "BF16"), limits={resource.RLIMIT_AS: 2500 * _MB}),
    _row("Memory and context", "a prompt longer than the context", "run m.gguf - --n-ctx 64 --threads 1", _take("m.gguf"), stdin=b"word " * 200),
    _row("Memory and context", "a prompt longer than the context of an ONNX model", "run onnx - --n-ctx 64 --threads 1", _take("onnx"), stdin=b"word " * 200),
)  # fmt: skip

HUB_ROWS = tuple(
    _row("Hub", *row[:2], row[2] if len(row) > 2 else nothing, **{"env": {"FAULT_IMPATIENT": "1"}, **(row[3] if len(row) > 3 else {})})  # type: ignore[arg-type, misc, dict-item]
    for row in (
        ("an unknown name", "pull qwen3-0.66b"),
        ("no network", _PULL, nothing, {"env": {"FAULT_IMPATIENT": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}}),
        ("offline mode", _PULL),
        ("a repository that is not there", "pull org/none --source huggingface", _served()),
        ("a repository that asks for a licence", _PULL, _served(HubFault(kind="status", stage="listing", value="GatedRepo"))),
        ("a repository that asks for a token", _PULL, _served(HubFault(kind="status", stage="listing", value=401))),
        ("a server that is broken", _PULL, _served(HubFault(kind="status", stage="listing", value=500))),
        ("a server that asks to wait too long", _PULL, _served(HubFault(kind="retry_after", stage="listing", value=9999))),
        ("a web page where the hub should be", _PULL, _served(HubFault(kind="no_json", stage="listing"))),
        ("a server that closes in the middle of a file", _PULL, _served(HubFault(kind="cut", value=0))),
        ("a file with other bytes than stated", _PULL, _served(HubFault(kind="wrong_bytes"))),
        ("a type that is not published", f"pull {REPOSITORY}@q2_k --source huggingface", _served()),
        ("a URL with the wrong digest", "pull URL --sha256 " + "0" * 64, _served()),
    )
)  # fmt: skip

PACKAGE_ROWS = (
    _row("Packages", "no gguf package, to convert", "convert ckpt -o m.gguf", _take("ckpt"), env={"FAULT_WITHOUT": "gguf"}),
    _row("Packages", "no onnx package, to convert", "convert ckpt --to onnx -o m", _take("ckpt"), env={"FAULT_WITHOUT": "onnx"}),
    _row("Packages", "no onnxruntime, to run", "run onnx Hi --threads 1 --n-ctx 256", _take("onnx"), env={"FAULT_WITHOUT": "onnxruntime"}),
    _row("Packages", "no tokenizers, to run", "run onnx Hi --threads 1 --n-ctx 256", _take("onnx"), env={"FAULT_WITHOUT": "tokenizers"}),
    _row("Packages", "no llama-cpp-python, to run", _RUN, _take("m.gguf"), env={"FAULT_WITHOUT": "llama_cpp", "QWEN_EDGE_NATIVE": "nowhere"}),
    _row("Packages", "the native library is missing", _RUN, _take("m.gguf"), env={"LLAMA_CPP_LIB_PATH": "nowhere"}),
    _row("Packages", "the native library is no library", _RUN, lambda world: (world.take("m.gguf"), (world.folder / "lib").mkdir(), (world.folder / "lib" / "libllama.so").write_text("no")), env={"LLAMA_CPP_LIB_PATH": "lib"}),
)  # fmt: skip

TYPED_ROWS = (
    _row("What is typed", "an unknown command", "cnvert ckpt"),
    _row("What is typed", "an unknown option", f"{_RUN} --max-token 4", _take("m.gguf")),
    _row("What is typed", "a number out of range", "run m.gguf Hi --temperature -1", _take("m.gguf")),
    _row("What is typed", "a word where a number belongs", "run m.gguf Hi --max-tokens many", _take("m.gguf")),
    _row("What is typed", "a mode of thinking that is none", "run m.gguf Hi --thinking maybe", _take("m.gguf")),
    _row("What is typed", "a prompt that is no UTF-8", "run m.gguf - --threads 1", _take("m.gguf"), stdin="Grüße".encode("latin-1")),
    _row("What is typed", "a prompt that is binary", "run m.gguf - --threads 1", _take("m.gguf"), stdin=b"\0\1\2"),
    _row("What is typed", "a file with the prompt that is no UTF-8", "run m.gguf -f notes.txt --threads 1", lambda world: (world.take("m.gguf"), (world.folder / "notes.txt").write_bytes(b"a\xff"))),
    _row("What is typed", "a file with the prompt that is not there", "run m.gguf Summarise -f note.txt --threads 1", lambda world: (world.take("m.gguf"), (world.folder / "notes.txt").touch())),
    _row("What is typed", "no prompt", "run m.gguf --threads 1", _take("m.gguf")),
    _row("What is typed", "a size that is none", "recommend qwen3-0.6b --max-memory lots"),
    _row("What is typed", "why a file that was never tuned runs as it does", "tune m.gguf --explain", _take("m.gguf")),
    _row("What is typed", "a context longer than the model handles, to recommend", "recommend qwen3-0.6b --n-ctx 999999"),
    _row("What is typed", "a model that is offered as one file only, to recommend", "recommend gemma-3-1b"),
    _row("What is typed", "an option of the other kind of target", "convert ckpt --weights int4 -o m.gguf", _take("ckpt")),
)  # fmt: skip

_INTERRUPTED = ("setup", "doctor", "device", "list", "pull org/tiny", "rm --records", "du", "convert ckpt -o x.gguf", "verify m.gguf --against ckpt",
                "quantize m.gguf -t q8_0 -o x.gguf", "run m.gguf Hi", "chat m.gguf", "tune m.gguf", "recommend qwen3-0.6b",
                "bundle m.gguf -o b", "verify-bundle b", "bench m.gguf", "demo", "completion bash")  # fmt: skip
ENDING_ROWS = (
    _row("Endings", "the reader of stdout goes away", "list", stdout="gone"),
    _row("Endings", "the reader of an answer goes away", _RUN, _take("m.gguf"), stdout="gone"),
    _row("Endings", "a full disk behind stdout", "list", stdout="full"),
    _row("Endings", "a full disk behind an answer", _RUN, _take("m.gguf"), stdout="full"),
    _row("Endings", "a full disk behind the results of bench", "bench m.gguf --prompt-tokens 16 --generate-tokens 4 --repetitions 1 --threads 1 --format json",
         _take("m.gguf"), stdout="full"),
    *(_row("Endings", f"Ctrl-C in {command.partition(' ')[0]}", command, _take("m.gguf", "ckpt"), env={"FAULT_INTERRUPT": "2"}) for command in _INTERRUPTED),
    _row("Endings", "SIGTERM in run", _RUN, _take("m.gguf"), env={"FAULT_INTERRUPT": "15"}),
)  # fmt: skip

_MODEL = "import qwen_edge\nmodel = qwen_edge.load('m.gguf', n_threads=1, n_ctx=256, safe_kernels=False)\n"
_FAKE = "from qwen_edge import Model\nfrom qwen_edge.engines.fake import FakeEngine\n"
LIBRARY_ROWS = (
    _library("Library", "a setting with a typing error", "import qwen_edge; qwen_edge.load('m.gguf', n_contex=256)", _take("m.gguf")),
    _library("Library", "a session after close()", _MODEL + "session = model.session()\nsession.close()\nsession.send('Hi')", _take("m.gguf")),
    _library("Library", "a saved session that is cut off", _MODEL + "model.restore_session('s.session')", lambda world: (world.take("m.gguf"), (world.folder / "s.session").write_bytes(b"QWENEDGE\1\0\0\0"))),
    _library("Library", "a tool without type hints", _MODEL + "def add(a, b):\n    return a\nmodel.session(tools=[add])", _take("m.gguf")),
    _library("Library", "a reply that does not fit the type", _FAKE + "Model(FakeEngine('no number')).session().extract('Which?', list[str], max_tokens=1)"),
    _library("Library", "a tool that is called without end", _FAKE + "def now() -> str:\n    return 'noon'\nModel(FakeEngine('<tool_call>\\n{\"name\": \"now\", \"arguments\": {}}\\n</tool_call>')).session(tools=[now]).run('When?', max_rounds=2)"),
    _library("Library", "a chat template that does not compile", "from qwen_edge.chat.template import ChatTemplate; ChatTemplate('{% for %}', {})"),
)  # fmt: skip
