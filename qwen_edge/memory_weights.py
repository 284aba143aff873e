"""The tensors of a model by what becomes of them when llama.cpp loads it: rearranged, mapped, or held as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.config import LoadConfig
from qwen_edge.memory_kernels import PLAIN, Kernels, expected_kernels, rearranged_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeights:
    """What becomes of the tensors of a file.

    Attributes:
        file_bytes: Length of the file.
        plain_bytes: Those that are read and held as they are in the file.
        rearranged_bytes: Those that are held in the form that kernels want, in that form.
        head_copy_bytes: A tied head in that form, beside the embedding that it is.
        mapped_bytes: Pages of a mapped file that stay in use.
        streamed_bytes: Of these, what every token reads; of an embedding that is no head it is a row alone.
    """

    file_bytes: int
    plain_bytes: int
    rearranged_bytes: int
    head_copy_bytes: int
    mapped_bytes: int
    streamed_bytes: int


def held_weights(
    tensors: Sequence[tuple[str, str, int, int, int]],
    file_bytes: int,
    config: LoadConfig,
    kernels: Kernels | None,
) -> HeldWeights:
    """Return what becomes of tensors.

    Args:
        tensors: Name, type, weights in a row, rows and bytes of each, in the order of the file.
        file_bytes: Length of the file.
        config: load_mode and safe_kernels are used.
        kernels: As in estimate_memory.
    """
    if config.safe_kernels:
        kernels = PLAIN
    elif kernels is None:
        kernels = expected_kernels(config)
    is_tied = all(name != "output.weight" for name, *_ in tensors)
    plain = rearranged = head_copy = before = span = streamed = 0
    is_leading = True
    for name, type_name, row_weights, n_rows, n_bytes in tensors:
        is_embedding = name == "token_embd.weight"
        form = rearranged_bytes(type_name, row_weights, n_rows, kernels) if n_rows > 1 else None
        if form is not None and not is_embedding:
            rearranged += form
            before += n_bytes
            continue
        if is_embedding and is_tied:
            head_copy = form or 0
        plain += n_bytes
        is_looked_up = is_embedding and (not is_tied or form is not None)
        streamed += 0 if is_looked_up else n_bytes
        # llama.cpp keeps the mapping from the first to the last tensor that it uses as it lies.
        span += n_bytes + (0 if is_leading else before)
        before, is_leading = 0, False
    is_mapped = config.load_mode == "mmap"
    return HeldWeights(
        file_bytes=file_bytes,
        plain_bytes=0 if is_mapped else plain,
        rearranged_bytes=rearranged,
        head_copy_bytes=head_copy,
        mapped_bytes=span if is_mapped else 0,
        streamed_bytes=streamed if is_mapped else 0,
    )
