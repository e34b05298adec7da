"""Runs in an interpreter that has torch and transformers: python sentences_reference.py MODEL SENTENCES.json OUT."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer


def main(folder: str, sentences: str, out: str) -> None:
    """Tokens of the sentences and all hidden states of the model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(json.loads(Path(sentences).read_text()), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    results = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    results |= {f"hidden.{index}": state for index, state in enumerate(hidden)}
    save_file({name: value.contiguous() for name, value in results.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
