"""One timed run of onnxruntime-genai on a folder: a program of its own, for an interpreter that has that package.

python bench/genai_worker.py FOLDER PROMPT_TOKENS GENERATE_TOKENS DEPTH THREADS

It imports nothing of this project. Prints JSON: prefill_tokens_per_s, decode_tokens_per_s, peak_memory_bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import onnxruntime_genai as genai

# Tokens of any vocabulary: what they say does not matter to the speed of a dense model.
_FIRST_TOKEN, _TOKENS = 100, 1000


def main() -> None:
    """Measure as the arguments say."""
    folder = sys.argv[1]
    prompt_tokens, generate_tokens, depth, n_threads = map(int, sys.argv[2:])
    config = genai.Config(folder)
    options = {"intra_op_num_threads": n_threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = genai.Model(config)
    tokens = [_FIRST_TOKEN + i % _TOKENS for i in range(depth + prompt_tokens)]
    _run(model, tokens[:32], 0, 4)  # warm-up
    prefill_s, _ = _run(model, tokens, depth, 1)
    _, decode_s = _run(model, tokens[: depth + 1], depth, generate_tokens)
    result = {
        "prefill_tokens_per_s": prompt_tokens / prefill_s,
        "decode_tokens_per_s": generate_tokens / decode_s,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _run(model: genai.Model, tokens: list[int], depth: int, generate_tokens: int) -> tuple[float, float]:
    """Return the seconds of the new tokens with the first one generated, and those of all generated tokens."""
    params = genai.GeneratorParams(model)
    length = len(tokens) + generate_tokens + 1
    params.set_search_options(
        max_length=length, min_length=length, do_sample=False, past_present_share_buffer=True
    )
    generator = genai.Generator(model, params)
    if depth:
        generator.append_tokens(tokens[:depth])
    start = time.perf_counter()
    generator.append_tokens(tokens[depth:])
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(generate_tokens - 1):
        generator.generate_next_token()
    return first - start, time.perf_counter() - start


if __name__ == "__main__":
    main()
