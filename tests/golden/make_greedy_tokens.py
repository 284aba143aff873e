"""Make greedy_tokens.json: what transformers generates from examples/tiny-qwen3, in float32, on 50 prompts.

Needs torch and transformers, which the project does not: run it in an environment of its own.

    python tests/golden/make_greedy_tokens.py

Each entry has the prompt's tokens, the generated tokens up to the end token, and for each step the gap between
the best and the second-best logit: where it is tiny, another arithmetic may rightly choose otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
CHECKPOINT = HERE.parents[1] / "examples" / "tiny-qwen3"
MAX_TOKENS = 96


def prompts() -> list[dict[str, Any]]:
    chat = [json.loads(line) for line in (CHECKPOINT / "eval" / "chat.jsonl").read_text().splitlines()]
    tools = [json.loads(line) for line in (CHECKPOINT / "eval" / "tools.jsonl").read_text().splitlines()]
    return [
        *({"messages": line["messages"], "thinking": False} for line in chat[:20]),
        *({"messages": line["messages"], "thinking": True} for line in chat[20:40]),
        *({"messages": line["messages"], "tools": line["tools"], "thinking": False} for line in tools[:10]),
    ]


def main() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    ends = set(model.generation_config.eos_token_id)
    entries = []
    for prompt in prompts():
        text = tokenizer.apply_chat_template(
            prompt["messages"],
            tools=prompt.get("tools"),
            enable_thinking=prompt["thinking"],
            add_generation_prompt=True,
            tokenize=False,
        )
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        generated: list[int] = []
        gaps: list[float] = []
        with torch.inference_mode():
            while len(generated) < MAX_TOKENS and not (generated and generated[-1] in ends):
                best = model(torch.tensor([tokens + generated])).logits[0, -1].topk(2)
                generated.append(int(best.indices[0]))
                gaps.append(round(float(best.values[0] - best.values[1]), 5))
        entries.append({**prompt, "prompt_tokens": tokens, "tokens": generated, "gaps": gaps})
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__, "dtype": "float32"}
    document = {"made_with": made_with, "max_tokens": MAX_TOKENS, "entries": entries}
    (HERE / "greedy_tokens.json").write_text(json.dumps(document, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
