"""What bundle.json says of a model and of the machine that it is bundled on."""

from __future__ import annotations

from dataclasses import asdict, replace

from qwen_edge.bundle import apps, papers
from qwen_edge.bundle.companions import Companions
from qwen_edge.bundle.facts import ModelFacts, chat_of
from qwen_edge.bundle.record import (
    Bundle,
    BundledBuild,
    BundledChat,
    BundledModel,
    BundledSettings,
    BundledSpeed,
    BundledTuning,
    BundleMachine,
    MemoryRow,
)
from qwen_edge.catalog import recommended_sampling
from qwen_edge.config import LoadConfig, SamplingConfig
from qwen_edge.errors import ConfigError
from qwen_edge.manifest import Origin, tool_versions
from qwen_edge.memory import MemoryEstimate
from qwen_edge.memory_check import memory_estimator
from qwen_edge.memory_kernels import PLAIN, Kernels, expected_kernels
from qwen_edge.native.library import build_facts
from qwen_edge.tuned import TuneRecord

# Beside the bundle's own: what a device with little memory, and one with much, may want to know.
_PLANNED_N_CTX = (1024, 2048, 4096, 8192, 16_384, 32_768)
_ARM: Kernels = frozenset({"arm"})


def settings_of(facts: ModelFacts, asked: LoadConfig) -> BundledSettings:
    """Return the settings for any device; the default context becomes the model's own where that is shorter.

    Raises:
        ConfigError: More context is asked for than the model was trained for.
    """
    n_ctx = asked.n_ctx
    if facts.n_ctx_train is not None and n_ctx > facts.n_ctx_train:
        if n_ctx != LoadConfig().n_ctx:
            raise ConfigError(
                f"a context of {n_ctx:,} tokens is more than {facts.path} was trained for ({facts.n_ctx_train:,})",
                hint=f"Take --n-ctx {facts.n_ctx_train} at most.",
            )
        n_ctx = facts.n_ctx_train
    return BundledSettings(
        n_ctx=n_ctx,
        n_batch=asked.n_batch,
        n_threads=asked.n_threads,
        flash_attention=asked.flash_attention,
        kv_type=asked.kv_type,
        load_mode=asked.load_mode,
    )


def describe(
    facts: ModelFacts,
    load: BundledSettings,
    *,
    origin: Origin,
    companions: Companions,
    record: TuneRecord | None,
    speed: BundledSpeed | None,
    file: str,
) -> Bundle:
    """Return all that bundle.json says, but for the files.

    Args:
        facts: The model.
        load: Settings for any device.
        origin: Where it was published.
        companions: Files of its publisher.
        record: What tuning found here; None where nothing.
        speed: What was measured here; None where nothing.
        file: Name of the model in the bundle.

    Raises:
        TemplateError: Its chat template does not compile.
    """
    chat = chat_of(facts)
    sampling = sampling_of(facts, chat)
    stated = (
        (origin.licence, "publisher"),
        (facts.licence, "model file"),
        (facts.row.licence if facts.row is not None else "", "catalog"),
    )
    licence, licence_source = next((each for each in stated if each[0]), ("", ""))
    is_gguf = facts.header is not None
    has_tokenizer = bool(companions.tokenizer) or not is_gguf
    return Bundle(
        made_with=tool_versions("huggingface-hub", "jinja2", "numpy"),
        model=BundledModel(
            file=file,
            format="gguf" if is_gguf else "onnx",
            name=facts.name,
            architecture=facts.architecture,
            n_params=facts.n_params,
            type=facts.type_name,
            bits_per_weight=facts.bits_per_weight,
            n_ctx_train=facts.n_ctx_train,
            licence=licence,
            licence_source=licence_source,
            licence_link=papers.licence_link(licence, facts.licence_link),
            repository=origin.location,
            revision=origin.revision,
            tokenizer="tokenizer.json" if has_tokenizer else "in the model file",
        ),
        chat=chat,
        sampling=apps.sampling_json(sampling),
        load=load,
        memory=_memory_rows(facts, load),
        machine=BundleMachine.here(),
        tuned=_tuning(record),
        speed=speed,
        build=build_here(is_gguf=is_gguf),
        llama_cpp=apps.llama_cpp_commands(file, load, chat, sampling) if is_gguf else {},
        files=(),
    )


def sampling_of(facts: ModelFacts, chat: BundledChat) -> apps.Sampling:
    """Return what the authors of a model recommend for each mode, None for a mode that it does not have."""

    def recommended(*, thinking: bool) -> SamplingConfig:
        return recommended_sampling(facts.architecture, thinking=thinking, name=facts.name)

    return {
        "direct": recommended(thinking=False) if chat.thinking != "always" else None,
        "thinking": recommended(thinking=True) if chat.thinking != "never" else None,
    }


def build_here(*, is_gguf: bool) -> BundledBuild:
    """Return the engine of this machine, without loading it."""
    if not is_gguf:
        version = tool_versions("onnxruntime")["onnxruntime"]
        return BundledBuild(
            engine="onnxruntime", version=None if version == "absent" else version, key=None, kernels=()
        )
    facts = build_facts()
    return BundledBuild(
        engine=facts["package"],
        version=facts["version"],
        key=facts.get("key"),
        kernels=tuple(facts.get("kernels", ())),
    )


def _tuning(record: TuneRecord | None) -> BundledTuning | None:
    if record is None:
        return None
    return BundledTuning(
        settings=asdict(record.settings),
        workload=asdict(record.workload),
        speeds=record.speeds,
        speculation=record.speculation,
        speculation_gain=record.speculation_gain,
    )


def _memory_rows(facts: ModelFacts, load: BundledSettings) -> tuple[MemoryRow, ...]:
    """Return what contexts take with the kernels of this machine, and of a GGUF with those of ARM."""
    config = load.config()
    limit = facts.n_ctx_train or load.n_ctx
    contexts = sorted({load.n_ctx, *(n_ctx for n_ctx in _PLANNED_N_CTX if n_ctx <= limit)})
    plans = [expected_kernels(config, facts.path), _ARM] if facts.header is not None else [PLAIN]
    rows = []
    for kernels in dict.fromkeys(plans):
        estimate = memory_estimator(facts.path, config, kernels=kernels)
        for n_ctx in contexts if estimate is not None else ():
            need = estimate(replace(config, n_ctx=n_ctx)) if estimate is not None else None
            if need is not None:
                rows.append(_memory_row(need, n_ctx, kernels))
    return tuple(rows)


def _memory_row(need: MemoryEstimate, n_ctx: int, kernels: Kernels) -> MemoryRow:
    return MemoryRow(
        n_ctx=n_ctx,
        kernels=tuple(sorted(kernels)),
        weights_bytes=need.weights_bytes,
        head_copy_bytes=need.head_copy_bytes,
        kv_bytes=need.kv_bytes,
        compute_bytes=need.compute_bytes,
        runtime_bytes=need.runtime_bytes,
        mapped_bytes=need.mapped_bytes,
        peak_bytes=need.total_bytes,
    )
