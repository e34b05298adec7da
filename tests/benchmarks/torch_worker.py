"""PyTorch's side of `train_step`; needs torch and transformers, and nothing of this project."""

import contextlib
import json
import sys
import time

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    """Answers until standard input ends."""
    device, how, model = ("cuda" if sys.argv[1] == "gpu" else "cpu"), sys.argv[2], json.loads(sys.argv[3])
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=model["vocab"], n_positions=model["length"], n_embd=model["width"], n_layer=model["depth"],
        n_head=model["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    gpt2 = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(gpt2.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = torch.randint(2, model["vocab"], (model["batch"], model["length"] + 1), device=device)
    half = model["precision"] == "bfloat16"
    precision = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()

    def loss_of(rows):
        with precision:
            logits = gpt2(input_ids=rows[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    if how == "compiled":
        loss_of = torch.compile(loss_of)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt2.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    step()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    step()
    for line in sys.stdin:
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            step()
            steps += 1
        speed = steps * model["batch"] * model["length"] / (time.perf_counter() - began)
        print(json.dumps({"tokens_per_second": speed}), flush=True)


if __name__ == "__main__":
    main()
