"""What a person reads in a bundle: README.md, and LICENSE where the publisher's text is not here."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from qwen_edge.bundle.record import RECORD_NAME, SUMS_NAME, Bundle, BundledModel
from qwen_edge.catalog import CatalogModel

_SPDX = "https://spdx.org/licenses"
_SPDX_IDS = ("Apache-2.0", "MIT")
_ABOUT = {
    "LICENSE": "the model's licence, or where it is to be found",
    "README.md": "this page",
    "chat_template.jinja": "the chat template",
    "config.json": "its sizes, for ONNX Runtime",
    "genai_config.json": "settings for onnxruntime-genai",
    "generation_config.json": "its end tokens and sampling",
    "llama-rn.json": "parameters for llama.rn's initLlama and completion",
    "manifest.json": "how it was exported",
    "requirements.lock": "the Python packages that qwen-edge ran with",
    "tensors.json": "a digest of each tensor: [name, first byte, length, SHA-256]",
    "tokenizer.json": "the tokenizer in Hugging Face's form",
    "tokenizer_config.json": "its settings",
}


def licence_link(licence: str, stated: str) -> str:
    """Return where the text of a licence is: what the file states, else SPDX's page of it, else ""."""
    known = next((name for name in _SPDX_IDS if name.lower() == licence.lower()), None)
    return stated or (f"{_SPDX}/{known}.html" if known else "")


def licence_text(model: BundledModel, row: CatalogModel | None) -> str:
    """Return what stands in LICENSE where the text itself was not on the machine."""
    source = model.licence_source
    if source == "catalog" and row is not None:
        source = f"what qwen-edge knows of {row.title}, which the model is by its name"
    lines = [
        f"Licence of the model: {model.licence or 'not stated by its file or its publisher'}",
        f"According to:         {source or 'nobody'}",
        f"Text of the licence:  {model.licence_link or 'no address is known'}",
        f"Published as:         {model.repository or 'not known: the file was made or copied by hand'}",
        "",
        "The text itself is not in this bundle: it was not beside the model where the bundle was made.",
        "Whoever passes the bundle on may have to add it.",
    ]
    return "\n".join(lines) + "\n"


def _commands(name: str) -> str:
    """Return the commands for whoever has the folder, each with what it is for."""
    rows = (
        (f"(cd {quote(name)} && sha256sum -c {SUMS_NAME})", "is it whole? Works without Python"),
        (f"qwen-edge verify-bundle {quote(name)}", "does it run here, and as it should?"),
        (f"qwen-edge chat {quote(name)}", "talk to it"),
    )
    width = max(len(command) for command, _ in rows)
    return "\n".join(f"{command:{width}}  # {what}" for command, what in rows)


def readme_text(bundle: Bundle, folder: Path) -> str:
    """Return README.md; it names no machine and no time."""
    model, chat, load = bundle.model, bundle.chat, bundle.load
    kind = f", {model.type}, {model.bits_per_weight:.2f} bits a weight" if model.type else ""
    size_bytes = sum(record.size_bytes for record in bundle.files)
    peak = next((row.peak_bytes for row in bundle.memory if row.n_ctx == load.n_ctx), None)
    memory = f", and {peak / 1e9:.2f} GB of memory at a context of {load.n_ctx:,} tokens" if peak else ""
    rows = "\n".join(
        f"| {record.name} | {_ABOUT.get(record.name, 'the model')} | {record.size_bytes:,} | `{record.sha256}` |"
        for record in bundle.files
    )
    tokenizer = "The tokenizer is inside the model file.\n\n" if model.tokenizer != "tokenizer.json" else ""
    programs = "\n".join(bundle.llama_cpp.values())
    other = (
        "## In other programs\n\n"
        f"`{model.file}` is a plain GGUF file: every program that stands on llama.cpp opens it.\n\n"
        f"```\n{programs}\n```\n\n"
        "An app on llama.rn reads `llama-rn.json`: `context` goes to `initLlama`, with its own path of the model, and one "
        "mode of `completion` to `context.completion`.\n\n"
        if model.format == "gguf"
        else ""
    )
    return (
        f"# {model.name or model.file}\n\n"
        f"{model.architecture}, {model.n_params / 1e6:,.0f} M weights{kind}. It takes {size_bytes / 1e6:,.0f} MB of disk"
        f"{memory}.\n"
        f"Licence of the model: {model.licence or 'not stated'}"
        f"{f' ({model.licence_link})' if model.licence_link else ''}.\n\n"
        "Everything that is needed to run it is in this folder; nothing is fetched.\n\n"
        "```\n"
        f"{_commands(folder.name)}\n"
        "```\n\n"
        f"{other}"
        "## What is in it\n\n"
        f"{tokenizer}"
        f"Replies end at {', '.join(f'`{text}`' for text in chat.stop) or 'the end token of the file'}. "
        f"`{RECORD_NAME}` has all facts and settings for programs.\n\n"
        f"| file | | bytes | SHA-256 |\n|---|---|---|---|\n{rows}\n"
    )
