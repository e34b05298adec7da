"""What is written of a run while it trains: one JSONL line a window of steps, and TensorBoard's files on request."""

import json
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from experiments.runs import Run, RunFailed, RunFolder, write_text
from parallel.distributed import is_lead


def window_of(run: Run) -> int:
    """Steps that one line of metrics is over; between windows a run can be saved and stopped."""
    return max(1, min(100, run.steps // 100))


class MetricsLog:
    """JSONL metrics, one line a window of steps; on resume, lines past the checkpoint are dropped."""

    def __init__(self, folder: RunFolder, run: Run, *, from_step: int, tensorboard: bool):
        self.path, self.run, self.last_loss = folder.metrics, run, None
        self.window = window_of(run)
        self.losses, self.norms = [], []
        self.began = time.monotonic()
        self.file = self.board = None
        if not is_lead():
            return
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= from_step]
        write_text(self.path, "".join(kept))
        self.file = self.path.open("a", buffering=1)
        if tensorboard:
            self.board = _tensorboard(folder.path)

    def add(self, first: int, count: int, metrics: dict[str, Float[Array, " steps"]]) -> None:
        """Takes in the metrics of a call.

        Raises:
            RunFailed: if a loss or gradient is not finite.
        """
        losses, norms = jax.device_get([metrics["loss"], metrics["gradient_norm"]])
        losses, norms = losses[:count], norms[:count]
        bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
        if bad.size:
            at = int(bad[0])
            raise RunFailed(
                f"step {first + at + 1} of {self.run.steps}: loss {losses[at]}, gradient norm {norms[at]}; "
                "the learning rate may be too high"
            )
        self.losses.extend(losses.tolist())
        self.norms.extend(norms.tolist())
        step = first + count
        if step % self.window and step != self.run.steps:
            return
        self.last_loss = float(np.mean(self.losses))
        now = time.monotonic()
        line = {
            "step": step,
            "loss": self.last_loss,
            "gradient_norm": float(np.mean(self.norms)),
            "learning_rate": float(self.run.schedule.rates(step - 1, 1, steps=self.run.steps)[0]),
            "tokens": step * self.run.batch_tokens,
            "tokens_per_second": len(self.losses) * self.run.batch_tokens / max(now - self.began, 1e-9),
        }
        self.losses, self.norms, self.began = [], [], now
        if self.file:
            self.file.write(json.dumps(line) + "\n")
        if self.board:
            for name in ("loss", "gradient_norm", "learning_rate", "tokens_per_second"):
                self.board.add_scalar(name, line[name], step)

    def close(self) -> None:
        """Closes the files."""
        for file in (self.file, self.board):
            if file:
                file.close()


def _tensorboard(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "TensorBoard metrics need tensorboardX: pip install 'scaling-experiments[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
