"""What a step of known models would take on pods that are not here: by arithmetic, and by the TPU's own compiler.

    python tests/benchmarks/compile_pods.py                                    # by arithmetic, about a minute
    python tests/benchmarks/compile_pods.py --compiled 4 --models llama-2-7b   # by the compiler (extra `tpu`)

For each model and pod there are the layouts that a person would set, FSDP over all chips and FSDP with four tensor
shards, and the mesh, remat and parts of the batch that a search picks. The compiler takes one to five minutes for each
layout; `--compiled 0` asks it about those set by hand alone. Each line is printed as soon as it is known.

Steps are of 2^20 tokens, in rows of 4,096 (GPT-3: 2,048, its vocabulary filled up to 50,304 so that shards divide it);
activations in bfloat16, parameters and AdamW in float32. A step takes the larger of computing and network, the one
hidden behind the other; GB are sent by one chip.
"""

import argparse
import os
from dataclasses import replace

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed: do not wait for an accelerator

from experiments.data.packed import DataConfig
from experiments.layouts import Layouts
from experiments.optimizer import Schedule
from experiments.placement import Layout
from experiments.runs import Run
from models import zoo
from models.execution import Precision, Remat
from parallel.estimate import Estimate
from parallel.topology import Topology

TOKENS = 2**20
MODELS = {
    "gpt3-1.3b": (zoo.make("gpt3", width=2048, depth=24, heads=16, vocab=50_304), 2048),
    "gpt3-6.7b": (zoo.make("gpt3", width=4096, depth=32, heads=32, vocab=50_304), 2048),
    "llama-2-7b": (replace(zoo.get("llama-7b"), length=4096), 4096),
    "llama-2-70b": (zoo.get("llama-2-70b"), 4096),
}
PODS = {"v5p-128": "v5p:4x4x4", "v5e-256": "v5e:16x16"}
HEADINGS = ("model", "pod", "layout", "by", "GiB a chip", "computing s", "network s", "MFU", "GB sent by axes")


def layouts_of(model: str, pod: str) -> Layouts:
    """A model's step on a pod."""
    architecture, length = MODELS[model]
    run = Run(
        architecture=architecture, data=DataConfig(length=length), rows="", schedule=Schedule(),
        batch=TOKENS // length, steps=1, precision=Precision.BFLOAT16,
    )  # fmt: skip
    return Layouts(run, Topology.parse(PODS[pod]), Layout(remat=Remat.FULL))


def row(model: str, pod: str, layout: Layout, said: Estimate) -> tuple[str, ...]:
    """A line of the table."""
    parts = f", {layout.accumulate} parts" if layout.accumulate > 1 else ""
    sent = {}
    for each in said.collectives:
        axes = "+".join(each.axes)
        sent[axes] = sent.get(axes, 0.0) + each.bytes / 1e9
    compiled = said.compile_seconds is not None
    needed = f"{said.memory_needed / 2**30:.1f}"
    return (
        model, pod, f"{layout.mesh}, {layout.remat.value}{parts}", "compiler" if compiled else "arithmetic",
        needed if said.fits else f"{needed} (too large)",
        *("" if value is None else f"{value:.2f}" for value in (said.compute_seconds, said.network_seconds, said.mfu)),
        ", ".join(f"{axes} {size:.1f}" for axes, size in sent.items()),
    )  # fmt: skip


def main() -> None:
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pods", nargs="+", choices=PODS, default=list(PODS))
    parser.add_argument("--compiled", type=int, help="ask the compiler: about what is set by hand, and so many more")
    options = parser.parse_args()
    print("|", " | ".join(HEADINGS), "|")
    print("|" + "---|" * len(HEADINGS))
    for model in options.models:
        for pod in options.pods:
            layouts = layouts_of(model, pod)
            say = layouts.predict if options.compiled is None else layouts.compile
            for mesh in by_hand(layouts.topology.chips):
                layout = replace(layouts.layout, mesh=mesh)
                print("|", " | ".join(row(model, pod, layout, say(layout))), "|", flush=True)
            best = layouts.search(compiled=options.compiled or 0).best
            if best:
                print("|", " | ".join(row(model, pod, best.layout, best.estimate)), "|", flush=True)


def by_hand(chips: int) -> tuple[str, str]:
    """Meshes that a person would set."""
    return f"fsdp={chips}", f"fsdp={chips // 4},tensor=4"


if __name__ == "__main__":
    main()
