"""PyTorch's side of `decode`; needs torch and transformers, and nothing of this project."""

import json
import sys
import time

import numpy as np
import torch
from transformers import GPT2LMHeadModel


def main() -> None:
    """Answers until standard input ends."""
    asked = json.loads(sys.argv[1])
    gpt2 = GPT2LMHeadModel.from_pretrained(asked["folder"], attn_implementation="sdpa").eval()
    rows = np.random.default_rng(0).integers(2, asked["vocab"], (asked["batch"], asked["prompt"]))
    prompts = torch.tensor(rows)
    settings = dict(max_new_tokens=asked["new"], min_new_tokens=asked["new"], do_sample=False, pad_token_id=0)
    gpt2.generation_config.eos_token_id = None

    def text() -> np.ndarray:
        with torch.inference_mode():
            done = gpt2.generate(prompts, attention_mask=torch.ones_like(prompts), use_cache=True, **settings)
        return done[:, asked["prompt"] :].numpy()

    print(json.dumps({"text": text().tolist()}), flush=True)
    for line in sys.stdin:
        calls, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            text()
            calls += 1
        speed = calls * asked["batch"] * asked["new"] / (time.perf_counter() - began)
        print(json.dumps({"tokens_per_second": speed}), flush=True)


if __name__ == "__main__":
    main()
