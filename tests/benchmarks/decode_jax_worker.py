"""Our side of `decode`: writes, and on each line of standard input measures for that many seconds."""

import json
import sys
import time

import jax
import numpy as np

from experiments.generation import Prompts, write
from models import pretrained, zoo
from models.execution import Execution
from models.layers import initialize
from models.transformer import declare
from parallel.mesh import device_mesh


def main() -> None:
    """Answers until standard input ends."""
    asked = json.loads(sys.argv[1])
    sizes = {name: asked[name] for name in ("width", "depth", "heads", "vocab")}
    architecture, execution = zoo.gpt2(**sizes, length=asked["prompt"] + asked["new"]), Execution()
    with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):
        init = jax.jit(lambda key: initialize(declare(architecture, execution=execution), key, execution.rules))
        model = init(jax.random.key(0))
        pretrained.save(asked["folder"], model)
        rows = np.random.default_rng(0).integers(2, asked["vocab"], (asked["batch"], asked["prompt"]))
        prompts = Prompts.of(rows.tolist()).placed(execution)

        def text() -> np.ndarray:
            return np.asarray(write(model, prompts, new=asked["new"]).tokens)

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
