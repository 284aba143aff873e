"""The vocabulary of a checkpoint as GGUF wants it: tokens, their types, merges, special tokens, chat template.

Read from tokenizer.json (the tokenizer itself), tokenizer_config.json (special tokens), config.json (their ids,
where the tokenizer does not say) and the chat template's file.

Source: `get_vocab_base` and `_set_vocab_gpt2` in llama.cpp's converter, `SpecialVocab` in gguf-py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.convert.json_files import Fields, read_object, read_object_if_present, read_text, shorten
from qwen_edge.convert.tokenizer_pipeline import AffixTokens, check_pipeline, read_affix_tokens
from qwen_edge.errors import CheckpointError

# Values of tokenizer.ggml.token_type. Source: `llama_token_type` in llama.cpp's llama.h.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# Those for which GGUF has a key.
_SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "mask")
_ADDED_KINDS = ("bos", "eos", "sep")
_REFETCH = "Fetch tokenizer.json again from where the checkpoint came from."

# Tokens that some checkpoints fail to mark as special. Source: `does_token_look_special` in llama.cpp's converter.
_SPECIAL_TEXTS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.*` of a GGUF file says.

    Attributes:
        pre_tokenizer: llama.cpp's name of the rule that splits text before merging.
        tokens: One text for each id, in the byte-level alphabet; ids without a token are "[PADn]".
        token_types: NORMAL, CONTROL, USER_DEFINED or UNUSED for each id.
        merges: "left right" pairs, the first merged first.
        special_ids: Kind ("bos", "eos", "pad", "eot", ...) to id.
        adds: Kind to whether the tokenizer adds that token around a text.
        chat_template: Jinja source, several named ones, or None.
    """

    pre_tokenizer: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    adds: dict[str, bool]
    chat_template: str | list[dict[str, str]] | None


def read_vocabulary(folder: Path, vocab_size: int, config: dict[str, Any]) -> Vocabulary:
    """Read the vocabulary of a checkpoint.

    Args:
        folder: The checkpoint.
        vocab_size: Rows of the embedding; ids beyond the tokenizer's are padding.
        config: config.json.

    Raises:
        CheckpointError: A file is missing or damaged, or two contradict each other.
        UnsupportedError: llama.cpp would split text in another way than this tokenizer.
    """
    tokenizer = Fields(read_object(folder / "tokenizer.json"), str(folder / "tokenizer.json"))
    tokenizer_config = Fields(
        read_object_if_present(folder / "tokenizer_config.json"), str(folder / "tokenizer_config.json")
    )
    model = tokenizer.table("model")
    pre_tokenizer = check_pipeline(tokenizer, model)
    added = _added_tokens(tokenizer, tokenizer_config)
    tokens, token_types = _tokens_by_id(model, added, vocab_size)
    affixes = read_affix_tokens(tokenizer)
    id_of_added = {text: token_id for token_id, (text, _) in added.items()}
    return Vocabulary(
        pre_tokenizer=pre_tokenizer,
        tokens=tokens,
        token_types=token_types,
        merges=_merges(model),
        special_ids=_special_ids(tokenizer_config, config, affixes, id_of_added, vocab_size),
        adds=_adds(tokenizer_config, affixes),
        chat_template=_chat_template(folder, tokenizer_config),
    )


def _added_tokens(tokenizer: Fields, tokenizer_config: Fields) -> dict[int, tuple[str, bool]]:
    """Return id -> (text, is special) of the tokens that are matched before any merging.

    Both files list them; a fine-tune may have extended one only.
    """
    listed = [(entry, tokenizer.where) for entry in tokenizer.items("added_tokens")]
    for key, entry in tokenizer_config.table("added_tokens_decoder").values.items():
        if not isinstance(entry, dict) or not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise CheckpointError(
                f"{tokenizer_config.where}: added_tokens_decoder has {key!r}: {shorten(entry)}, "
                "expected an id and an object",
                hint=_REFETCH,
            )
        listed.append(({**entry, "id": int(key)}, tokenizer_config.where))
    added: dict[int, tuple[str, bool]] = {}
    for entry, where in listed:
        if not isinstance(entry, dict):
            raise CheckpointError(
                f"{where}: an added token is {shorten(entry)}, expected an object", hint=_REFETCH
            )
        fields = Fields(entry, f"{where}, added token {shorten(entry.get('content'))}")
        token_id = fields.integer("id", low=0, high=2**31 - 1)
        text = fields.text("content")
        known = added.setdefault(token_id, (text, fields.boolean("special", default=False)))
        if known[0] != text:
            raise CheckpointError(
                f"{where} calls the added token {token_id} {text!r}, elsewhere it is {known[0]!r}",
                hint=_REFETCH,
            )
    return added


def _tokens_by_id(
    model: Fields, added: dict[int, tuple[str, bool]], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Return the text and the type of each id below `vocab_size`."""
    tokens = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    token_types = [UNUSED] * vocab_size
    for text, token_id in model.table("vocab").values.items():
        _check_token(text, token_id, vocab_size, model.where)
        if token_types[token_id] != UNUSED:
            raise CheckpointError(
                f"{model.where}: id {token_id} is both {tokens[token_id]!r} and {text!r}", hint=_REFETCH
            )
        tokens[token_id], token_types[token_id] = text, NORMAL
    for token_id, (text, is_special) in added.items():
        _check_token(text, token_id, vocab_size, model.where)
        if token_types[token_id] == NORMAL and tokens[token_id] != text:
            raise CheckpointError(
                f"{model.where}: id {token_id} is both {tokens[token_id]!r} and the added token {text!r}",
                hint=_REFETCH,
            )
        tokens[token_id] = text
        token_types[token_id] = CONTROL if is_special or _looks_special(text) else USER_DEFINED
    if NORMAL not in token_types:
        raise CheckpointError(f"{model.where}: 'vocab' is empty or absent", hint=_REFETCH)
    return tokens, token_types


def _check_token(text: str, token_id: Any, vocab_size: int, where: str) -> None:
    if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
        raise CheckpointError(
            f"{where}: token {text!r} has id {shorten(token_id)}, but config.json allows 0..{vocab_size - 1} (vocab_size)",
            hint="config.json and tokenizer.json belong to different models, or one of them is damaged.",
        )
    if not text or not _is_utf8(text):
        raise CheckpointError(
            f"{where}: token {token_id} is {text!r}, expected a text that UTF-8 can hold", hint=_REFETCH
        )


def _looks_special(text: str) -> bool:
    return text in _SPECIAL_TEXTS or any(
        text.startswith(left) and text.endswith(right) for left, right in _SPECIAL_BRACKETS
    )


def _merges(model: Fields) -> list[str]:
    """Return the merges as "left right"; files have them so, or as pairs."""
    vocab = model.table("vocab").values
    merges = []
    for merge in model.items("merges"):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CheckpointError(
                f"{model.where}: a merge is {shorten(merge)}, expected two tokens", hint=_REFETCH
            )
        left, right = pair
        if " " in left or " " in right or not {left, right, left + right} <= vocab.keys():
            raise CheckpointError(
                f"{model.where}: merge {shorten(merge)} uses or makes a token that 'vocab' does not have",
                hint=_REFETCH,
            )
        merges.append(f"{left} {right}")
    if not merges:
        raise CheckpointError(f"{model.where}: 'merges' is empty or absent", hint=_REFETCH)
    return merges


def _special_ids(
    tokenizer_config: Fields,
    config: dict[str, Any],
    affixes: AffixTokens | None,
    id_of_added: dict[str, int],
    vocab_size: int,
) -> dict[str, int]:
    """Return kind -> id: what tokenizer_config.json names, else what config.json gives as id."""
    texts = {kind: _token_text(tokenizer_config, f"{kind}_token") for kind in _SPECIAL_KINDS}
    if affixes is not None and affixes.last is not None and affixes.last != texts["eos"]:
        # An embedding model closes each text with a token of its own; the chat's end of turn becomes "eot".
        texts["eot"], texts["eos"] = texts["eos"], affixes.last
    if affixes is not None and affixes.first is not None:
        texts["bos"] = affixes.first
    ids = {
        kind: id_of_added[text] for kind, text in texts.items() if text is not None and text in id_of_added
    }
    for kind in _SPECIAL_KINDS:
        token_id = config.get(f"{kind}_token_id")
        # Several ends of text are a list; the first is the one that the model was trained with.
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]
        if kind in ids or token_id is None:
            continue
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise CheckpointError(
                f"config.json: '{kind}_token_id' is {shorten(token_id)}, expected an id in 0..{vocab_size - 1}"
            )
        ids[kind] = token_id
    return ids


def _token_text(tokenizer_config: Fields, key: str) -> str | None:
    """Return a special token's text: a string, or an object with "content"."""
    value = tokenizer_config.values.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _adds(tokenizer_config: Fields, affixes: AffixTokens | None) -> dict[str, bool]:
    """Return which special tokens are put around a text; the post-processor outweighs tokenizer_config.json."""
    adds: dict[str, bool] = {}
    if affixes is not None:
        adds = {"bos": affixes.first is not None, "eos": affixes.last is not None}
    for kind in _ADDED_KINDS:
        key = f"add_{kind}_token"
        if kind not in adds and key in tokenizer_config:
            adds[kind] = tokenizer_config.boolean(key, default=False)
    return adds


def _chat_template(folder: Path, tokenizer_config: Fields) -> str | list[dict[str, str]] | None:
    """Return the chat template: a file of its own comes before tokenizer_config.json, as in transformers."""
    if (folder / "chat_template.jinja").is_file():
        template: Any = read_text(folder / "chat_template.jinja")
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if others:
            template = [
                {"name": "default", "template": template},
                *({"name": path.stem, "template": read_text(path)} for path in others),
            ]
    elif (folder / "chat_template.json").is_file():
        template = read_object(folder / "chat_template.json").get("chat_template")
    else:
        template = tokenizer_config.values.get("chat_template")
    if template is not None and not _is_template(template):
        raise CheckpointError(
            f"{folder}: the chat template is {shorten(template)}, expected a text or a list of named ones",
            hint="Look at chat_template.jinja, chat_template.json and tokenizer_config.json.",
        )
    return template or None


def _is_template(value: Any) -> bool:
    if isinstance(value, str):
        return _is_utf8(value)
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) and _is_utf8(entry[key]) for key in ("name", "template"))
        for entry in value
    )


def _is_utf8(text: str) -> bool:
    """Tell whether a text can be written: JSON can spell half of a surrogate pair, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
