"""The steps of a tokenizer other than its tokens: checked against what llama.cpp does for Qwen.

A GGUF file does not describe how text is split; it names a rule that llama.cpp has built in. A checkpoint whose
tokenizer.json asks for anything else would be tokenized wrongly without a word, so it is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen_edge.convert.json_files import Fields, shorten
from qwen_edge.errors import CheckpointError, UnsupportedError

# The pattern that llama.cpp splits by, as Qwen's tokenizer.json spells it. It has two names there: the first is
# Qwen's, whose tokenizer composes characters before, the second that of DeepSeek's distillations, which do not.
# Source: LLAMA_VOCAB_PRE_TYPE_QWEN2 in llama.cpp, src/llama-vocab.cpp
COMPOSING, PLAIN = "qwen2", "deepseek-r1-qwen"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_HINT = "The tokenizers that Qwen published with Qwen2, Qwen2.5 and Qwen3 can be converted."


@dataclass(frozen=True)
class AffixTokens:
    """Tokens that the tokenizer puts around each text.

    Attributes:
        first: The text of the token before it, or None.
        last: The text of the token after it, or None.
    """

    first: str | None = None
    last: str | None = None


def check_pipeline(tokenizer: Fields, model: Fields) -> str:
    """Check normalizer, pre-tokenizer and model, and return llama.cpp's name of the splitting rule.

    Raises:
        CheckpointError: tokenizer.json is malformed.
        UnsupportedError: llama.cpp's tokenizer does something else.
    """
    _check_bpe(model)
    composes = _composes(tokenizer)
    steps = _flatten(tokenizer, "pre_tokenizer", "pretokenizers")
    if [step.text("type") for step in steps] == ["Split", "ByteLevel"]:
        split, byte_level = steps
        pattern = split.table("pattern").text("Regex")
        is_plain = (
            split.text("behavior") == "Isolated"
            and not split.boolean("invert", default=False)
            and not byte_level.boolean("add_prefix_space", default=True)
            and not byte_level.boolean("use_regex", default=True)
        )
        if is_plain and pattern == SPLIT_PATTERN:
            return COMPOSING if composes else PLAIN
    raise UnsupportedError(
        f"{tokenizer.where}: 'pre_tokenizer' is {shorten(tokenizer.values.get('pre_tokenizer'), 300)}, "
        "which is not Qwen's rule",
        hint=_HINT,
    )


def read_affix_tokens(tokenizer: Fields) -> AffixTokens | None:
    """Return the tokens that the post-processor puts around a text; None where there is no post-processor.

    Raises:
        CheckpointError: tokenizer.json is malformed.
        UnsupportedError: The post-processor does more than that.
    """
    steps = _flatten(tokenizer, "post_processor", "processors")
    if not steps:
        return None
    affixes = AffixTokens()
    for step in steps:
        kind = step.text("type")
        if kind == "TemplateProcessing":
            affixes = _template_affixes(step)
        elif kind != "ByteLevel":
            raise UnsupportedError(f"{step.where}: the post-processor {kind!r} is not supported", hint=_HINT)
    return affixes


def _check_bpe(model: Fields) -> None:
    if model.text("type", "BPE") != "BPE":
        raise UnsupportedError(
            f"{model.where}: the model is {model.text('type')!r}, supported is 'BPE'", hint=_HINT
        )
    for key in ("byte_fallback", "ignore_merges", "fuse_unk"):
        if model.boolean(key, default=False):
            raise UnsupportedError(
                f"{model.where}: {key!r} is true, which Qwen's tokenizers do not use", hint=_HINT
            )
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if model.text(key):
            raise UnsupportedError(
                f"{model.where}: {key!r} is set, which Qwen's tokenizers do not use", hint=_HINT
            )


def _composes(tokenizer: Fields) -> bool:
    """Return whether the tokenizer composes characters (NFC), after checking that it does nothing else."""
    steps = _flatten(tokenizer, "normalizer", "normalizers")
    for step in steps:
        # llama.cpp composes nothing: whoever feeds it text has to (NFC), and most text is composed already.
        if step.text("type") != "NFC":
            raise UnsupportedError(
                f"{tokenizer.where}: the normalizer {step.text('type')!r} is not supported, only 'NFC'",
                hint=_HINT,
            )
    return bool(steps)


def _flatten(fields: Fields, key: str, inner_key: str) -> list[Fields]:
    """Return the steps of a stage: none, one, or those of a "Sequence"."""
    if key not in fields:
        return []
    stage = fields.table(key)
    if stage.text("type") != "Sequence":
        return [stage]
    steps = stage.items(inner_key)
    for step in steps:
        if not isinstance(step, dict):
            raise CheckpointError(f"{stage.where}: a step is {shorten(step)}, expected an object")
    return [Fields(step, stage.where) for step in steps]


def _template_affixes(step: Fields) -> AffixTokens:
    """Read `[first] A [last]` from a TemplateProcessing step."""
    pieces = [_template_piece(piece) for piece in step.items("single")]
    is_known = pieces.count(None) == 1 and "" not in pieces and len(pieces) <= 3
    if not is_known or (len(pieces) == 3 and pieces[1] is not None):
        raise UnsupportedError(
            f"{step.where}: the template {shorten(step.values.get('single'))} is not supported, "
            "only one text with a token before it, after it, or both",
            hint=_HINT,
        )
    text_at = pieces.index(None)
    return AffixTokens(
        first=pieces[0] if text_at == 1 else None,
        last=pieces[-1] if text_at == len(pieces) - 2 else None,
    )


def _template_piece(piece: Any) -> str | None:
    """Return a special token's text, None for the text itself, "" for what is neither."""
    if isinstance(piece, dict) and "Sequence" in piece:
        return None
    special = piece.get("SpecialToken") if isinstance(piece, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else ""
