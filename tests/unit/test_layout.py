"""The rules of the tree: what is packaged, which way imports point, what an import loads."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Lower layers first. A module imports from its own layer and those above it in this table, never from below.
# A package stands for all its modules, unless a module has an entry of its own.
LAYERS = (
    (
        "byte_sizes",
        "errors",
        "files",
        "lazy",
        "paths",
        "types",
        "openai_format",
        "config",
        "candidates",
        "quant_types",
        "digests",
        "manifest",
        "gguf_check",
        "gguf_header",
        "logits",
        "state_file",
    ),
    (
        "bundle.json_form",
        "bundle.record",
        "catalog",
        "catalog_rows",
        "catalog_types",
        "hub",
        "device",
        "chat",
        "native",
        "tensor_mixture",
        "tensor_plan",
        "trial_blocks",
        "trial_model",
    ),
    ("engines.base",),
    ("engines",),
    (
        "memory",
        "memory_advice",
        "memory_check",
        "memory_fit",
        "memory_guard",
        "memory_kernels",
        "memory_onnx",
        "memory_plan",
        "memory_shapes",
        "memory_weights",
        "async_call",
        "async_session",
        "bundle.applying",
        "cancellation",
        "embedding",
        "generation",
        "history",
        "kv_fingerprint",
        "logprobs",
        "model",
        "tuned",
        "overflow",
        "prefix_cache",
        "prefix_turn",
        "reply_options",
        "reply_slot",
        "removal",
        "session",
        "session_asking",
        "session_file",
        "session_history",
        "speculation",
        "speculation_draft",
        "speculation_gain",
        "speculation_lookup",
        "speculation_proposer",
        "speculation_trial",
        "stored",
        "tool_loop",
        "typed",
    ),
    ("tune", "bundle", "doctor", "server", "cli"),
)
# Beside the layers: convert and quantize stand on the core, which ends with the engines (quantize measures what a file
# lost through one); bench stands on the public API.
CORE = LAYERS[3]
TOOLS = ("convert", "quantize", "bench")

ONLY_IMPORTER = {"llama_cpp": "native", "onnxruntime": "engines.onnx_runtime"}


def _sources() -> Iterator[tuple[str, Path]]:
    """Yield (module name without `qwen_edge.`, file) of the package; the symlinks are followed through TOOLS."""
    for folder, prefix in [(ROOT / "qwen_edge", ""), *((ROOT / tool, f"{tool}.") for tool in TOOLS)]:
        for file in sorted(folder.rglob("*.py")):
            relative = file.relative_to(folder)
            if not prefix and relative.parts[0] in TOOLS:
                continue
            parts = relative.with_suffix("").parts
            yield prefix + ".".join(parts), file


def _imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (imported module, line, whether it runs when the file is imported).

    Imports for type checkers only do not run and are left out.
    """

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, at_import
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: relative import"
                for alias in child.names:
                    yield f"{child.module}.{alias.name}", child.lineno, at_import
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, at_import and not is_function)

    yield from walk(ast.parse(file.read_text()), True)


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _tool(module: str) -> str | None:
    return next((tool for tool in TOOLS if _is_within(module, tool)), None)


def _layer(module: str) -> int | None:
    """Return the layer of a module; None for the package itself (`from qwen_edge import Model`)."""
    best: tuple[int, int] | None = None
    for layer, names in enumerate(LAYERS):
        for name in names:
            if _is_within(module, name) and (best is None or len(name) > best[0]):
                best = (len(name), layer)
    return best[1] if best else None


def _has_layer(module: str) -> bool:
    return module in ("__init__", "__main__") or _tool(module) is not None or _layer(module) is not None


def test_every_module_has_a_layer() -> None:
    homeless = [module for module, _ in _sources() if not _has_layer(module)]
    assert not homeless, f"give {homeless} a place in LAYERS: which modules may import them?"


def _wrong_way(module: str, target: str, lazily: bool) -> str | None:
    """Return what is wrong with one import inside the package, None when it points the right way."""
    tool, target_tool = _tool(module), _tool(target)
    layer, target_layer = _layer(module), _layer(target)
    if module in ("__init__", "__main__"):
        return None  # the public names, each imported when it is first used
    if tool:
        if target_tool and target_tool != tool and (tool, target_tool) != ("quantize", "convert"):
            return f"{tool} never imports {target_tool}: what both need is core"
        if tool != "bench" and target_layer is not None and target_layer > LAYERS.index(CORE):
            return f"{tool} stands on the core, not on {target}"
        return f"{tool} never imports the command line" if _is_within(target, "cli") else None
    if target_tool:
        if not _is_within(module, "cli"):
            return f"the runtime never imports {target_tool}: it ships to devices without it"
        return None if lazily else f"the command line loads {target_tool} when called, inside the function"
    if layer is not None and target_layer is not None and target_layer > layer:
        return f"{module} is below {target}: move what both need further down"
    return None


def test_imports_point_down() -> None:
    wrong = []
    for module, file in _sources():
        for target, line, at_import in _imports(file):
            if target.startswith("qwen_edge."):
                problem = _wrong_way(module, target.removeprefix("qwen_edge."), not at_import)
                wrong += [f"{file.relative_to(ROOT)}:{line}: {problem}"] if problem else []
    assert not wrong, "\n".join(wrong)


def test_import_rules_refuse_what_they_are_for() -> None:
    assert _wrong_way("session", "engines.base", False) is None
    assert _wrong_way("engines.base", "engines.llama", False)
    assert _wrong_way("native.handles", "session", False)
    assert _wrong_way("model", "quantize.types", True)
    assert _wrong_way("cli.quantize", "quantize.types", True) is None
    assert _wrong_way("cli.quantize", "quantize.types", False)
    assert _wrong_way("quantize.types", "convert.qwen", False) is None
    assert _wrong_way("convert.qwen", "quantize.types", False)
    assert _wrong_way("convert.qwen", "session", False)
    assert _wrong_way("bench.speed", "session", False) is None


@pytest.mark.parametrize(("package", "importer"), ONLY_IMPORTER.items())
def test_engine_packages_have_one_importer(package: str, importer: str) -> None:
    others = [
        f"{file.relative_to(ROOT)}:{line}"
        for module, file in _sources()
        for target, line, _ in _imports(file)
        if _is_within(target, package) and not _is_within(module, importer)
    ]
    assert not others, f"only qwen_edge.{importer} imports {package}"


def test_nothing_imports_a_second_copy() -> None:
    files = [file for _, file in _sources()]
    files += sorted([*ROOT.glob("tests/**/*.py"), *ROOT.glob("examples/*.py")])
    bare = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in files
        for target, line, _ in _imports(file)
        if _tool(target)
    ]
    assert not bare, "import qwen_edge.convert (quantize, bench), not the bare name"


def test_pyproject_lists_every_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        f"qwen_edge.{module.removesuffix('.__init__')}" if module != "__init__" else "qwen_edge"
        for module, _ in _sources()
        if module.endswith("__init__")
    }
    data = {name for name in setuptools["packages"] if name.startswith("qwen_edge.tiny-qwen3")}
    assert set(setuptools["packages"]) == folders | data
    assert setuptools["packages"] == sorted(setuptools["packages"])
    for tool in TOOLS:
        assert setuptools["package-dir"][f"qwen_edge.{tool}"] == tool


def test_the_model_of_the_demo_is_packaged_whole() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    model = ROOT / "examples" / "tiny-qwen3"
    for folder in (model, *(path for path in model.rglob("*") if path.is_dir())):
        name = ".".join(["qwen_edge", *folder.relative_to(model.parent).parts])
        assert setuptools["package-dir"][name] == folder.relative_to(ROOT).as_posix()
        patterns = setuptools["package-data"][name]
        left_out = [
            file.name
            for file in folder.iterdir()
            if file.is_file() and not any(file.match(pattern) for pattern in patterns)
        ]
        assert not left_out, f"{name} leaves out {left_out}"


def test_every_folder_with_code_is_a_package() -> None:
    for _, file in _sources():
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} holds code and no __init__.py"


@pytest.mark.parametrize("tool", TOOLS)
def test_symlinks_lead_to_the_top_level_folders(tool: str) -> None:
    link = ROOT / "qwen_edge" / tool
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{tool}", "relative, so that a clone anywhere works"


def _loaded_by(code: str) -> tuple[set[str], float]:
    """Run code in a fresh interpreter; return the top-level packages it loads besides the standard library, and its CPU
    seconds.

    Both without what an interpreter of this environment loads at its start (.pth files).
    """
    program = (
        "import sys, json\nbefore = set(sys.modules)\n"
        f"{code}\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(loaded - set(sys.stdlib_module_names))), file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        printed, report = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, report.decode()
    if "main(" in code:
        assert b"Usage: qwen-edge" in printed
    return set(json.loads(report.splitlines()[-1])), usage.ru_utime + usage.ru_stime


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded, _ = _loaded_by("import qwen_edge")
    assert loaded <= {"qwen_edge", "numpy"}


def test_help_loads_click_and_little_else(record_property: Callable[[str, object], None]) -> None:
    code = "from qwen_edge.cli.main import main\nassert main(['--help']) == 0"
    runs = [_loaded_by(code) for _ in range(5)]
    assert runs[0][0] <= {"qwen_edge", "click"}
    # A figure for the report, no gate: it depends on the machine and on what else runs there.
    record_property("help_cpu_s", round(min(cpu_s for _, cpu_s in runs), 3))
