"""Speed of writing text with a cache, ours beside `transformers.generate`, measured together in one run.

    python tests/benchmarks/decode.py                                      # CPU, float32, batch 8
    python tests/benchmarks/decode.py --torch-python /path/to/bin/python   # an interpreter that has torch
    python tests/benchmarks/decode.py --models 124m

Both sides have the same GPT-2: ours saves its initial weights, theirs loads them. Both go on greedily from the same
random prompts until all the new tokens are written, reading of the prompts included, and report new tokens per second
over all rows. Each runs in a process of its own with all cores; they are measured by turns, one at a time, over several
rounds, and the table shows medians, and the ratio to PyTorch. `same text` is the share of tokens that agree: it is
below 1 where rounding decided between two tokens, after which texts go their own ways.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from train_step import System, table

from experiments.launch.environment import cpu_environment

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Model:
    """A GPT-2, its prompts, and how many tokens to write; `folder` is where its weights lie."""

    width: int
    depth: int
    heads: int
    vocab: int
    batch: int = 8
    prompt: int = 64
    new: int = 192
    folder: str = ""


MODELS = {
    "small": Model(width=64, depth=2, heads=2, vocab=512),
    "medium": Model(width=256, depth=4, heads=4, vocab=1024),
    "124m": Model(width=768, depth=12, heads=12, vocab=50_257, new=64),
}


def benchmark(name: str, model: Model, options: argparse.Namespace) -> list[dict]:
    """Rows of the table for one model."""
    with tempfile.TemporaryDirectory() as root:
        model = replace(model, folder=str(Path(root) / "model"))
        base = dict(os.environ) | {"PYTHONPATH": str(HERE.parent.parent)}
        environment = cpu_environment(devices=1, base=base)
        running = {"ours": System([sys.executable, str(HERE / "decode_jax_worker.py")], model, environment)}
        if options.torch_python:
            command = [options.torch_python, str(HERE / "decode_torch_worker.py")]
            running["transformers.generate"] = System(command, model, dict(os.environ))
        for turn in range(options.rounds):
            for system in list(running)[:: 1 if turn % 2 else -1]:
                running[system].measure(options.seconds)
        for system in running.values():
            system.close()
    ours = running["ours"]
    theirs = running.get("transformers.generate")
    rows = []
    for system, state in running.items():
        speed = statistics.median(state.speeds)
        pairs = zip(ours.facts["text"], state.facts["text"], strict=True)
        same = [one == other for lines in pairs for one, other in zip(*lines, strict=True)]
        rows.append({
            "model": name,
            "system": system,
            "new tokens/s": f"{speed:,.0f}",
            "spread": f"{min(state.speeds):,.0f}-{max(state.speeds):,.0f}",
            "/ transformers": f"{speed / statistics.median(theirs.speeds):.2f}" if theirs else "no torch",
            "same text": f"{sum(same) / len(same):.3f}",
            "first text s": f"{state.first_step:.1f}",
        })  # fmt: skip
    print(f"{name}: {replace(model, folder='')}")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["medium", "small"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of writing, each system and round")
    parser.add_argument("--torch-python", default=sys.executable if importlib.util.find_spec("torch") else None)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    models = {name: replace(MODELS[name], batch=options.batch) for name in options.models}
    print(table([row for name, model in models.items() for row in benchmark(name, model, options)]))


if __name__ == "__main__":
    main()
