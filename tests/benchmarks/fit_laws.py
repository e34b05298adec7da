"""Speed of fitting the Chinchilla law: this project, SciPy and PyPI `chinchilla`, on this machine, now.

    python tests/benchmarks/fit_laws.py --table chinchilla_points.csv               # the published runs
    python tests/benchmarks/fit_laws.py                                             # a synthetic table of 240 runs
    python tests/benchmarks/fit_laws.py --chinchilla-python ELSEWHERE/bin/python    # an interpreter that has it

Two tasks, log-Huber with delta 1e-3: a pairs bootstrap, every resample to its own optimum, and a fit from many starts.
Every system runs each in a process of its own, one after the other. "Cold" begins after the imports with nothing
compiled, "warm" is the best of three more in the same process. "Certified" are the fits within 1e-6 (relative) of the
lowest objective that any system found for the same problem; a fit that is not is worth nothing, so the last columns
divide by them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from train_step import table  # noqa: E402

TRUTH = {"E": 1.82, "A": 480.0, "B": 2100.0, "alpha": 0.347, "beta": 0.367}


def runs_of(path: Path | None, drop: int) -> pd.DataFrame:
    """Columns params, tokens, flops, loss; of the published runs without the highest losses, as in their refits."""
    if path is None:
        generator = np.random.default_rng(0)
        params, ratio = np.exp(generator.uniform(np.log([4e7, 1.0]), np.log([1.5e10, 200.0]), (240, 2))).T
        tokens = ratio * params
        loss = TRUTH["E"] + TRUTH["A"] * params ** -TRUTH["alpha"] + TRUTH["B"] * tokens ** -TRUTH["beta"]
        loss *= np.exp(0.004 * generator.standard_t(3, 240))
    else:
        frame = pd.read_csv(path).sort_values("loss").iloc[: -drop or None]
        params, flops, loss = (frame[name].to_numpy() for name in ("Model Size", "Training FLOP", "loss"))
        tokens = flops / (6 * params)
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": 6 * params * tokens, "loss": loss})


def measure(command: list[str]) -> dict:
    """Run a worker without a compilation cache; what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a benchmark process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(options: argparse.Namespace, folder: Path) -> list[dict]:
    """Rows of the table."""
    frame = runs_of(options.table, options.drop)
    path = folder / "runs.csv"
    frame.to_csv(path, index=False)
    spread = folder / "starts.npy"
    make = (
        "import sys, numpy as np, laws_worker, scaling.runs as r; theta = laws_worker.begin(r.read(sys.argv[1]), "
        "int(sys.argv[2])); theta[:, 0] = np.log(np.maximum(theta[:, 0], 1e-3)); np.save(sys.argv[3], theta)"
    )
    ours, scipy = [sys.executable, str(HERE / "laws_worker.py")], [sys.executable, str(HERE / "scipy_worker.py")]
    subprocess.run(
        [sys.executable, "-c", make, str(path), str(options.starts), str(spread)],
        check=True,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{HERE}"},
    )
    jobs = [
        ("bootstrap", "ours", ours, options.resamples),
        ("bootstrap", "SciPy, 2 processes", scipy, options.resamples),
        ("starts", "ours", ours, options.starts),
        ("starts", "SciPy, the same starts", scipy, spread),
        ("starts", "SciPy, Hoffmann's 4,500", scipy, 4500),
    ]
    if options.chinchilla_python:
        jobs.append(("starts", "chinchilla 0.2.0", [options.chinchilla_python, str(HERE / "chinchilla_worker.py")], 0))
    measured, ends = [], []
    for i, (task, system, command, count) in enumerate(jobs):
        out = folder / f"{i}.npy"
        measured.append(measure([*command, task, str(path), str(count), str(out)]))
        ends.append(np.load(out))
        print(f"{task}, {system}: {measured[-1]}", file=sys.stderr)
    rows = []
    for (task, system, _, _), facts, values in zip(jobs, measured, ends, strict=True):
        rivals = [other for (name, *_), other in zip(jobs, ends, strict=True) if name == task]
        lowest = np.min(rivals, axis=0) if task == "bootstrap" else min(np.nanmin(other) for other in rivals)
        certified = int(np.sum(values <= lowest * (1 + 1e-6)))
        each = facts["warm"] / max(certified, 1)
        first = next(row for row in rows if row["task"] == task) if system != "ours" else None
        rows.append({
            "task": task,
            "system": system,
            "fits": f"{len(values):,}",
            "imports s": f"{facts['imports']:.2f}",
            "cold s": f"{facts['cold']:.2f}",
            "warm s": f"{facts['warm']:.2f}",
            "processor s": f"{facts['processor']:.2f}",
            "lowest": f"{np.nanmin(values):.10f}" if task == "starts" else f"{np.nanmean(values):.10f} (mean)",
            "certified": f"{certified:,} ({certified / len(values):.1%})",
            "ms a certified fit": f"{1000 * each:.3f}",
            "x ours": f"{each / first['each']:,.1f}" if first else "1",
            "each": each,
        })  # fmt: skip
    return [{name: cell for name, cell in row.items() if name != "each"} for row in rows]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="the published runs: Model Size, Training FLOP, loss")
    parser.add_argument("--drop", type=int, default=5, help="of the published runs, how many of the highest losses")
    parser.add_argument("--resamples", type=int, default=4000)
    parser.add_argument("--starts", type=int, default=4500)
    parser.add_argument("--chinchilla-python", help="an interpreter that has chinchilla 0.2.0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = benchmark(options, Path(folder))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} processors, load {load:.1f} at the end")
    print(table(rows))


if __name__ == "__main__":
    main()
