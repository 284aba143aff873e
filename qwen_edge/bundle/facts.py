"""What a bundle says of a model: read from the file's own header, nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.golden import golden_digest
from qwen_edge.bundle.record import TEMPLATE_NAME, BundledChat
from qwen_edge.catalog import MODELS, CatalogModel, normalised
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.engines.onnx_folder import is_onnx, read_folder
from qwen_edge.errors import ModelNotFoundError, UnsupportedError
from qwen_edge.gguf_check import check_model_file
from qwen_edge.gguf_header import GGUFHeader, read_header, read_texts
from qwen_edge.hub.listing import split_count
from qwen_edge.memory_shapes import catalog_model_of, header_shape
from qwen_edge.quant_types import file_type_of_id

# Texts that end a reply in Qwen's models, where a GGUF's vocabulary has them; the vocabulary of an export is Qwen's.
# Source: special_eog_ids in llama.cpp's src/llama-vocab.cpp, as far as Qwen has them.
_ENDS = ("<|im_end|>", "<|endoftext|>")
_CHATML_OPENING = "<|im_start|>"
# Of what a file says of itself: it stands in headings and tables.
_MAX_LINE_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One model, before it is bundled.

    Attributes:
        path: The GGUF file, or the ONNX folder.
        header: Of the GGUF file; None for ONNX.
        name: As it says itself, "" where it does not.
        architecture: "qwen3", "qwen2", ...
        n_params: Weights.
        weights_bytes: Of all tensors.
        type_name: Quantization; None where nothing tells.
        n_ctx_train: Tokens of context it was trained for; None where nothing tells.
        row: Its row of the catalog; None where it has none.
        licence: As the file states it, "" where it does not.
        licence_link: The same of its address.
        chat_template: Jinja source, "" without one.
        special_texts: "bos_token" and "eos_token", where the file has them.
        tokens: Texts of the vocabulary by id, for comparing; () for ONNX.
    """

    path: Path
    header: GGUFHeader | None
    name: str
    architecture: str
    n_params: int
    weights_bytes: int
    type_name: str | None
    n_ctx_train: int | None
    row: CatalogModel | None
    licence: str
    licence_link: str
    chat_template: str
    special_texts: Mapping[str, str]
    tokens: tuple[bytes, ...]

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors, scales included; 0 for a model without weights."""
        return round(8 * self.weights_bytes / self.n_params, 3) if self.n_params else 0.0

    @property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            TemplateError: It does not compile.
        """
        return ChatTemplate(self.chat_template, self.special_texts, path=self.path)


def read_facts(path: Path) -> ModelFacts:
    """Read what a GGUF file or an exported folder says of itself.

    Raises:
        ModelNotFoundError: Nothing is there, or a checkpoint.
        FormatError: It is damaged.
        UnsupportedError: It is spread over several files.
    """
    if is_onnx(path):
        return _onnx_facts(path if path.is_dir() else path.parent)
    if path.is_dir():
        raise ModelNotFoundError(
            f"{path} is a folder without a model that runs: no GGUF file was named, and it is no ONNX export",
            hint=f"A checkpoint becomes a GGUF file by: qwen-edge convert {path}",
        )
    if split_count(path.name):
        raise UnsupportedError(
            f"{path} is one of several files that make up a model; a bundle holds one",
            hint="Join them with llama.cpp's llama-gguf-split --merge.",
        )
    check_model_file(path)
    return _gguf_facts(read_header(path))


def special_texts(header: GGUFHeader, tokens: tuple[bytes, ...]) -> dict[str, str]:
    """Return what a template is given as bos_token and eos_token."""
    found = {}
    for kind in ("bos", "eos"):
        token = header.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            found[f"{kind}_token"] = tokens[token].decode("utf-8", "replace")
    return found


def chat_of(facts: ModelFacts) -> BundledChat:
    """Return how a model is talked to.

    Raises:
        TemplateError: Its template does not compile.
    """
    template = facts.template
    vocabulary = set(facts.tokens)
    ends = [end for end in _ENDS if facts.header is None or end.encode() in vocabulary]
    eos = facts.special_texts.get("eos_token", "")
    return BundledChat(
        template=TEMPLATE_NAME if facts.chat_template else None,
        template_form="chatml" if _CHATML_OPENING in template.source else "",
        thinking=template.thinking.value,
        takes_tools=template.takes_tools,
        eos_token=eos,
        stop=tuple(dict.fromkeys([*([eos] if eos else []), *ends])),
        golden_sha256=golden_digest(template),
    )


def _gguf_facts(header: GGUFHeader) -> ModelFacts:
    def text(key: str) -> str:
        value = header.metadata.get(key, "")
        return value if isinstance(value, str) else ""

    def line(key: str) -> str:
        return " ".join(text(key).split())[:_MAX_LINE_CHARS]

    architecture = text("general.architecture")
    kind = file_type_of_id(header.metadata.get("general.file_type"))
    n_ctx_train = header.metadata.get(f"{architecture}.context_length")
    tokens = tuple(read_texts(header, "tokenizer.ggml.tokens"))
    shape = header_shape(header)
    return ModelFacts(
        path=header.path,
        header=header,
        name=line("general.name"),
        architecture=architecture,
        n_params=header.n_weights,
        weights_bytes=header.tensor_bytes,
        type_name=kind.name if kind is not None else None,
        n_ctx_train=n_ctx_train if isinstance(n_ctx_train, int) and n_ctx_train > 0 else None,
        row=(catalog_model_of(header, shape) if shape is not None else None) or _named(text("general.name")),
        licence=line("general.license"),
        licence_link=line("general.license.link"),
        chat_template=text("tokenizer.chat_template"),
        special_texts=special_texts(header, tokens),
        tokens=tokens,
    )


def _onnx_facts(folder: Path) -> ModelFacts:
    found = read_folder(folder)
    return ModelFacts(
        path=folder,
        header=None,
        name=found.name,
        architecture=found.architecture,
        n_params=found.n_params,
        weights_bytes=found.weights_bytes,
        type_name=found.precision["weights"],
        n_ctx_train=found.n_ctx_train,
        row=_named(found.name),
        licence="",
        licence_link="",
        chat_template=found.chat_template,
        special_texts=found.special_texts,
        tokens=(),
    )


def _named(name: str) -> CatalogModel | None:
    wanted = normalised(name)
    return next((row for row in MODELS.values() if wanted and normalised(row.title) == wanted), None)
