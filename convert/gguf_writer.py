"""Writing the GGUF file: all of the header at once, then the tensors one after the other in small pieces.

This module and adapter_gguf are the only ones here that import the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwen_edge.convert.checkpoint import Checkpoint
from qwen_edge.convert.dtypes import ITEM_BYTES, OutputType, encode
from qwen_edge.convert.json_files import Fields, read_object_if_present
from qwen_edge.convert.pooling import read_pooling
from qwen_edge.convert.qwen import QwenConfig
from qwen_edge.convert.reranker import PROMPT, RerankerHead
from qwen_edge.convert.rope import YARN_BETA_FAST, YARN_BETA_SLOW, Rope, yarn_attention_factor
from qwen_edge.convert.rows import check_finite_piece
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.convert.vocabulary import Vocabulary
from qwen_edge.errors import CheckpointError, MissingExtraError, UnsupportedError

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", "convert", "converting a checkpoint") from error

# Large enough that reads and writes are sequential, small enough that all copies of a piece stay below 50 MB.
_PIECE_BYTES = 4 << 20

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
TENSOR_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}

# generation_config.json -> field of gguf.Metadata, and its type.
# Source: `Metadata.load` in the gguf-py of llama.cpp; the published package still misses `repetition_penalty`.
_SAMPLING_FIELDS = {
    "sequence": ("sampling_sequence", str),
    "top_k": ("sampling_top_k", int),
    "top_p": ("sampling_top_p", float),
    "min_p": ("sampling_min_p", float),
    "xtc_probability": ("sampling_xtc_probability", float),
    "xtc_threshold": ("sampling_xtc_threshold", float),
    "temperature": ("sampling_temp", float),
    "penalty_last_n": ("sampling_penalty_last_n", int),
    "repetition_penalty": ("sampling_penalty_repeat", float),
    "penalty_repeat": ("sampling_penalty_repeat", float),
    "mirostat": ("sampling_mirostat", int),
    "mirostat_tau": ("sampling_mirostat_tau", float),
    "mirostat_eta": ("sampling_mirostat_eta", float),
}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor on its way into the file.

    Attributes:
        source: Where it is read.
        gguf_name: Its name in the file.
        stored_as: Its type in the file.
    """

    source: TensorSource
    gguf_name: str
    stored_as: OutputType

    @property
    def n_bytes(self) -> int:
        """Its size in the file, without padding."""
        return self.source.n_elements * ITEM_BYTES[self.stored_as]


def write_gguf(
    path: Path,
    *,
    checkpoint: Checkpoint,
    config: QwenConfig,
    vocabulary: Vocabulary,
    tensors: list[PlannedTensor],
    head: RerankerHead | None,
    dtype: OutputType,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the whole file.

    Args:
        path: The file to make.
        checkpoint: For its name, model card, generation_config.json and pooling.
        config: Parameters of the architecture.
        vocabulary: The tokenizer.
        tensors: In the order in which they are stored.
        head: Of a reranker, else None.
        dtype: Recorded as the file's type.
        progress: Called with the bytes of tensors written so far, and those of all.

    Raises:
        CheckpointError: The model card or generation_config.json cannot be understood, or a weight is no number.
        UnsupportedError: A weight does not fit into the type.
        OSError: The file cannot be written.
    """
    _write_header(path, checkpoint, config, vocabulary, tensors, head, dtype)
    total_bytes = sum(tensor.n_bytes for tensor in tensors)
    done_bytes = 0
    with path.open("ab") as file:
        pad(file)
        for tensor in tensors:
            for encoded in _encoded_pieces(tensor):
                file.write(encoded)
                done_bytes += len(encoded)
                if progress is not None:
                    progress(done_bytes, total_bytes)
            pad(file)


def pad(file: BinaryIO) -> None:
    """Fill up to where the next tensor may begin."""
    file.write(b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


def _encoded_pieces(tensor: PlannedTensor) -> Iterator[bytes]:
    for piece in tensor.source.read_pieces(_PIECE_BYTES):
        check_finite_piece(piece, tensor.source)
        try:
            yield encode(piece, tensor.source.dtype, tensor.stored_as)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"{tensor.source.name!r} in {tensor.source.path}: {error.message}", hint=error.hint
            ) from error


def _write_header(
    path: Path,
    checkpoint: Checkpoint,
    config: QwenConfig,
    vocabulary: Vocabulary,
    tensors: list[PlannedTensor],
    head: RerankerHead | None,
    dtype: OutputType,
) -> None:
    writer = gguf.GGUFWriter(path, config.architecture)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        _add_general(writer, checkpoint, sum(tensor.source.n_elements for tensor in tensors))
        _add_architecture(writer, config)
        pooling = "RANK" if head is not None else read_pooling(checkpoint.folder)
        if pooling is not None:
            writer.add_pooling_type(gguf.PoolingType[pooling])
        if head is not None:
            writer.add_classifier_output_labels(head.labels)
        writer.add_file_type(_FILE_TYPES[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_vocabulary(writer, vocabulary)
        _add_templates(writer, vocabulary.chat_template, with_prompt=head is not None)
        for tensor in tensors:
            stored_as = TENSOR_TYPES[tensor.stored_as]
            # The third is the type of a numpy array, and there is none.
            writer.add_tensor_info(
                tensor.gguf_name, tensor.source.shape, None, tensor.n_bytes, raw_dtype=stored_as
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add_general(writer: Any, checkpoint: Checkpoint, n_parameters: int) -> None:
    """Add general.*: what the model card, config.json and the checkpoint's name tell, and the recommended sampling."""
    sampling = _read_sampling(checkpoint.folder)
    try:
        metadata = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(**sampling),
            gguf.Metadata.load_model_card(checkpoint.folder),
            checkpoint.config,
            Path(checkpoint.name),
            n_parameters,
        )
        metadata.name = metadata.name or checkpoint.name
        metadata.size_label = metadata.size_label or gguf.size_label(n_parameters, n_parameters, 0, 0)
        metadata.set_gguf_meta_model(writer)
        _check_texts(writer.kv_data[0])
    except OSError:
        raise
    except Exception as error:  # a model card can hold anything, and gguf's reader of it can raise anything
        raise CheckpointError(
            f"the model card {checkpoint.folder / 'README.md'} cannot be understood: {type(error).__name__}: {error}",
            hint="Mend its first part, between the lines '---', or move it away: it only describes the model.",
        ) from error


def _read_sampling(folder: Path) -> dict[str, Any]:
    """Return the recommended sampling of generation_config.json as fields of gguf.Metadata."""
    path = folder / "generation_config.json"
    fields = Fields(read_object_if_present(path), str(path))
    sampling: dict[str, Any] = {}
    for key, (field, kind) in _SAMPLING_FIELDS.items():
        if key not in fields:
            continue
        if kind is str:
            sampling[field] = fields.text(key)
        elif kind is int:
            sampling[field] = fields.integer(key, low=-(2**31), high=2**31 - 1)
        else:
            sampling[field] = fields.number(key, low=-1e30, high=1e30)
    return sampling


def _check_texts(kv_data: dict[str, Any]) -> None:
    """Check that what a model card gave as text is text, before the writer trips over it."""
    for key, entry in kv_data.items():
        if entry.type is gguf.GGUFValueType.STRING:
            texts = [entry.value]
        elif entry.type is gguf.GGUFValueType.ARRAY:
            texts = entry.value
        else:
            continue
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{key} is {text!r}, expected text")
            text.encode("utf-8")


def _add_architecture(writer: Any, config: QwenConfig) -> None:
    """Add the parameters. Source: `TextModel.set_gguf_parameters` in llama.cpp's converter."""
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.n_ctx_train)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    _add_rope(writer, config.rope)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.head_dim_is_stated or config.architecture == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def _add_rope(writer: Any, rope: Rope) -> None:
    writer.add_rope_freq_base(rope.theta)
    scaling = rope.scaling
    if scaling is None:
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "linear":
        return
    writer.add_rope_scaling_orig_ctx_len(scaling.n_ctx_original)
    if (scaling.beta_fast, scaling.beta_slow) != (YARN_BETA_FAST, YARN_BETA_SLOW):
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    # llama.cpp applies YaRN's own factor and multiplies by this key; it reads "yarn_attn_factor" and overwrites it.
    # Source: the constructor of llama_context in llama.cpp, src/llama-context.cpp
    beyond_default = scaling.attention_factor / yarn_attention_factor(scaling.factor)
    if beyond_default != 1.0:
        writer.add_rope_scaling_attn_factors(beyond_default)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    writer.add_token_merges(vocabulary.merges)
    for kind, token_id in vocabulary.special_ids.items():
        getattr(writer, f"add_{kind}_token_id")(token_id)
    for kind, is_added in vocabulary.adds.items():
        getattr(writer, f"add_add_{kind}_token")(is_added)


def _add_templates(
    writer: Any, chat_template: str | list[dict[str, str]] | None, *, with_prompt: bool
) -> None:
    """Add the chat template, or several named ones; a reranker's prompt is one more."""
    if with_prompt:
        own = (
            [{"name": "default", "template": chat_template}]
            if isinstance(chat_template, str)
            else chat_template
        )
        chat_template = [*(own or []), PROMPT]
    if chat_template is None:
        return
    writer.add_chat_template(chat_template)
    names = writer.kv_data[0].get(gguf.Keys.Tokenizer.CHAT_TEMPLATES)
    if names is not None:
        names.value.sort()  # the writer takes them from a set: without order, two conversions would differ
