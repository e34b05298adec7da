"""The columns of a table of runs, their units, and which of them are meant by N and C."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

SCHEMA: dict[str, str] = {
    "run": "identity of the run",
    "sweep": "name of the sweep it belongs to",
    "architecture": "name of the architecture",
    "objective": "what the loss is of; losses of different objectives cannot be compared",
    "role": "'sweep' (fitted) or 'held-out' (predicted, never fitted)",
    "params": "all parameters",
    "params_nonembedding": "parameters without token and position embeddings and head",
    "params_active": "parameters used per token",
    "tokens": "training tokens seen, repeats counted",
    "unique_tokens": "training tokens seen, repeats not counted",
    "flops": "training FLOPs, forward and backward, exact count",
    "flops_6nd": "6 x params x tokens",
    "flops_kaplan": "6 x params_nonembedding x tokens",
    "flops_min": "FLOPs of the same loss at batches far below the critical one (Kaplan's C_min)",
    "params_vocabulary": "parameters of the vocabulary: vocabulary x width",
    "experts": "experts of a routed layer; 1 for a dense model",
    "granularity": "width of the dense feed-forward layer over the width of one expert",
    "bits_weights": "precision of weights in training, bits",
    "bits_activations": "precision of activations in training, bits",
    "bits_kv": "precision of keys and values in training, bits",
    "bits_post": "precision of weights after training, bits",
    "loss": "held-out cross-entropy, nats per token, final",
    "loss_se": "standard error of loss, nats per token",
    "bits_per_byte": "held-out cross-entropy, bits per byte of text",
    "task_loss": "loss of a task's right answers, bits per byte",
    "accuracy": "share of a task's questions answered right",
    "error": "share of downstream questions answered wrong",
    "perplexity_ratio": "perplexity over that of the unigram model of the same vocabulary",
    "loss_increase": "loss added by quantizing after training, nats per token",
    "batch_tokens": "tokens per optimizer step",
    "learning_rate": "peak learning rate",
    "steps": "optimizer steps",
    "steps_min": "steps of the same loss at batches far above the critical one (Kaplan's S_min)",
    "critical_batch": "batch that costs twice the fewest steps and twice the fewest tokens, tokens",
    "lr_sum": "sum of the learning rate over all steps so far",
    "lr_annealing": "annealing area of the learning rate so far (Tissue's S_2)",
    "lr_drop": "fall of the learning rate so far, in pieces",
    "lr_after": "learning rate after each piece",
    "lr_since": "sum of the learning rate since each piece",
    "width": "width of the residual stream",
    "layers": "number of layers",
    "length": "context length, tokens",
    "vocab": "vocabulary size",
    "seed": "seed of initialisation and data order",
    "seconds": "wall-clock time, seconds",
    "status": "'done' or 'failed'",
    "reason": "why the run failed",
}
"""Every column the framework writes, and what it holds."""

HELD_OUT = "held-out"


@dataclass(frozen=True)
class Convention:
    """Which columns are meant by "N" and "C": exponents depend on it, so every result carries it.

    Attributes:
        params: the column taken as N.
        flops: the column taken as C, FLOPs.
    """

    params: str = "params"
    flops: str = "flops"

    def __str__(self) -> str:
        return f"N = {self.params}, C = {self.flops}"

    def view(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The table with this convention's columns under the names that laws read, `params` and `flops`."""
        named = {"params": self.params, "flops": self.flops}
        return frame.assign(**{ours: frame[theirs] for ours, theirs in named.items() if theirs in frame})


@dataclass(frozen=True)
class Table:
    """A checked table and what had to be done to get it.

    Attributes:
        frame: the rows that can be fitted, indexed 0, 1, ...
        notes: one sentence for each thing that was derived or dropped.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ", did you mean 'x'?", or the list of known names when none is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    lower = {candidate.lower(): candidate for candidate in reversed(known)}
    close = close or [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(map(repr, known))}" if known else ""


def require(frame: pd.DataFrame, name: str, *, what: str) -> None:
    """Refuse a table without a column.

    Raises:
        ValueError: `what`, and the nearest name there is.
    """
    if name not in frame.columns:
        raise ValueError(what + nearest(name, [str(column) for column in frame.columns]))
