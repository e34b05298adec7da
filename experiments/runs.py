"""What a run is, its identity, its folder, and its row in the table of runs."""

import csv
import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.buckets import CHECKPOINTS, Mirror, Place
from experiments.configuration import from_json, to_json
from experiments.data.examples import AnyExamples
from experiments.data.packed import DataConfig
from experiments.data.prepared import TOKENIZER, Prepared
from experiments.objectives import AnyObjective, Causal, Sides, Sparing
from experiments.optimizer import AdamW, Schedule
from models.cost import Cost
from models.execution import Precision
from models.transformer import AnyArchitecture


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: everything that defines its result, and nothing about where or how it is computed.

    Attributes:
        architecture: the model.
        data: what the text is, or the examples, and how it became rows.
        rows: fingerprint of the prepared rows, which stands for the text itself.
        schedule: learning rate over the run.
        batch: rows per optimizer step.
        steps: optimizer steps.
        objective: what is learned.
        optimizer: how.
        precision: type of activations.
        seed: of initialisation, order of the data, and dropout.
        evaluation_rows: held-out rows that the final loss is over; None for all.
    """

    architecture: AnyArchitecture
    data: DataConfig | AnyExamples
    rows: str
    schedule: Schedule
    batch: int
    steps: int
    objective: AnyObjective = Causal()
    optimizer: AdamW = AdamW()
    precision: Precision = Precision.FLOAT32
    seed: int = 0
    evaluation_rows: int | None = None

    def __post_init__(self):
        for name in ("batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"run: {name} is {getattr(self, name)} and must be at least 1")
        if (sides := Sides.of(self.architecture)) not in self.objective.sides:
            wanted = " or ".join(side.value for side in self.objective.sides)
            raise ValueError(
                f"run: {self.objective.label} asks {wanted}, and {self.architecture.family} is {sides.value}"
            )
        if self.objective.vocab > self.architecture.vocab:
            raise ValueError(
                f"run: {self.objective.label} uses {self.objective.vocab} token ids and the architecture has "
                f"{self.architecture.vocab}"
            )
        try:
            _ = self.places
        except ValueError as error:
            raise ValueError(f"run: {error}") from error

    @cached_property
    def identity(self) -> str:
        """12 hexadecimal digits of a hash of everything that defines the result."""
        # Read back first: 1 and 1.0 are one setting.
        stored = to_json(from_json(Run, to_json(self)), identity=True)
        # Where text and tokenizer lie does not matter: the fingerprint of the rows stands for what they held.
        del stored["data"]["source"]
        stored["data"].get("tokenizer", {}).pop("path", None)
        return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def places(self) -> tuple[int, ...]:
        """Vectors that each stack reads of a row: its tokens, or the squares of an image."""
        return self.architecture.places(self.objective.lengths(self.data.length))

    @property
    def asked(self) -> int | None:
        """Tokens of a row that logits are computed for; None for all that the last stack reads."""
        sparing = isinstance(self.objective, Sparing)
        return self.objective.most(self.places[-1]) if sparing else None

    @property
    def batch_tokens(self) -> int:
        """Vectors that the model reads in a step; an encoder-decoder's inputs and targets both count."""
        return self.batch * sum(self.places)

    @property
    def tokens(self) -> int:
        """Training tokens seen, repeats counted."""
        return self.steps * self.batch_tokens

    @property
    def cost(self) -> Cost:
        """Parameters, and FLOPs per token."""
        *inputs, length = self.places
        few = {} if self.asked is None else {"asked": self.asked}  # what has no head for tokens is not asked about few
        return self.architecture.cost(length, *inputs, **few)

    def columns(self) -> dict[str, Any]:
        """What is known of a run before it is trained, in the columns of the table of runs."""
        cost = self.cost
        return {
            "run": self.identity,
            "architecture": self.architecture.family,
            # A loss over the rows of a batch compares only with those of equal batches.
            "objective": self.objective.label + (f"-of-{self.batch}" if self.objective.couples_rows else ""),
            "params": cost.params,
            "params_nonembedding": cost.params_nonembedding,
            "params_active": cost.params_active,
            "tokens": self.tokens,
            "flops": cost.flops(self.tokens),
            "flops_6nd": cost.flops_6nd(self.tokens),
            "flops_kaplan": cost.flops_kaplan(self.tokens),
            "batch_tokens": self.batch_tokens,
            "learning_rate": self.schedule.peak,
            "steps": self.steps,
            "width": self.architecture.width,
            "layers": self.architecture.depth,
            "length": self.data.length,
            "vocab": self.architecture.vocab,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run's place in a sweep, which is not part of the run.

    Attributes:
        run: the run.
        sweep: name of the sweep.
        budget: the FLOPs (exact count) the cell was made for.
        role: "sweep" for a run that laws are fitted to, "held-out" for one that they predict.
    """

    run: Run
    sweep: str
    budget: float
    role: str = "sweep"


ROWS = "rows.json"
"""File that says which rows a folder's runs are trained on."""


class RunFailed(RuntimeError):
    """A run cannot go on; the message says why and at which step."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its definition, metrics, checkpoints, and its result or the reason it has none.

    Where it is a working copy of a folder in a bucket, what is recorded here is there as well when the call returns.

    Attributes:
        path: the folder, which `record` makes.
        url: the folder in a bucket that it is a working copy of; empty if it is no copy.
    """

    path: Path
    url: str = ""

    @property
    def metrics(self) -> Path:
        """JSONL, one line a window of steps."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path | str:
        """Folder of checkpoints, or its URL where they are written straight to the bucket."""
        return f"{self.url}/checkpoints" if self.place.direct else self.path / "checkpoints"

    @property
    def place(self) -> Place:
        """The folder, and its bucket."""
        return Place(self.path, self.url)

    @cached_property
    def _mirror(self) -> Mirror | None:
        if not self.url:
            return None
        return Mirror(self.place, left_out=[CHECKPOINTS] if self.place.direct else [])

    def pull(self) -> None:
        """Makes the folder what its bucket holds; does nothing where there is no bucket.

        Raises:
            OSError: if the bucket cannot be read.
        """
        if self._mirror:
            self._mirror.pull()

    def push(self) -> None:
        """Makes the bucket hold what the folder does; does nothing where there is no bucket.

        Raises:
            OSError: if the bucket cannot be written.
        """
        if self._mirror:
            self._mirror.push()

    def record(self, run: Run, prepared: Prepared) -> None:
        """Makes the folder and writes what the run is, and what its rows are, with their tokenizer.

        Raises:
            ValueError: if the run was begun on other rows.
            OSError: if the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            record_rows(self.path, prepared)
            if (tokenizer := prepared.folder / TOKENIZER).is_file():
                shutil.copy(tokenizer, self.path / TOKENIZER)
            write_json(self.path / "run.json", to_json(run))
        except OSError as error:
            raise OSError(f"run folder {self.path} cannot be written: {error.strerror or error}") from error
        self.push()

    def run(self) -> Run:
        """The run that the folder is of.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if its definition does not fit this version.
        """
        path = self.path / "run.json"
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is not the folder of a run (no run.json)")
        try:
            stored = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return from_json(Run, stored, str(path))

    def result(self) -> dict[str, Any] | None:
        """The finished run's measured columns; None while there are none."""
        path = self.path / "result.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def failure(self) -> str | None:
        """Why the run failed the last time it was tried; None if it did not."""
        path = self.path / "failed.json"
        return json.loads(path.read_bytes())["reason"] if path.is_file() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Records the result."""
        (self.path / "failed.json").unlink(missing_ok=True)
        write_json(self.path / "result.json", result)
        self.push()

    def failed_for_good(self) -> bool:
        """Whether trying again would fail again (a diverged run), unlike after a full disk or a killed process."""
        path = self.path / "failed.json"
        return path.is_file() and json.loads(path.read_bytes())["for_good"]

    def fail(self, reason: str, *, for_good: bool) -> None:
        """Records the reason of a failure, and whether trying again is pointless."""
        write_json(self.path / "failed.json", {"reason": reason, "for_good": for_good})
        self.push()


def record_rows(folder: Path, prepared: Prepared) -> None:
    """Writes what the rows are that runs in a folder are trained on; checks it where that is written already.

    Raises:
        ValueError: if they are other rows.
        OSError: if it cannot be written.
    """
    if (folder / ROWS).is_file():
        check_rows(folder, prepared)
    else:
        write_json(folder / ROWS, asdict(prepared.metadata))


def check_rows(folder: Path, prepared: Prepared) -> None:
    """Checks that rows are those that `record_rows` wrote down in a folder; does nothing if it did not.

    Equal fingerprints say that text and settings are equal. The rows are too, if the tokenizer was: one that another
    machine trained, with another version of its library, may differ.

    Raises:
        ValueError: if they are other rows.
    """
    if not (path := folder / ROWS).is_file():
        return
    try:
        stored = json.loads(path.read_bytes())
        begun = (stored["tokenizer_sha256"], stored["train"]["sha256"], stored["held_out"]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for what, before, now in zip(("tokenizer", "training rows", "held-out rows"), begun, prepared.digests, strict=True):
        if before != now:
            raise ValueError(
                f"{folder} was begun on other rows of the same text than {prepared.folder} holds ({what}: hash "
                f"{before[:12]}, here {now[:12]}); make them with the versions of then, or train into another folder"
            )


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole at any moment."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file that is whole at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def table(cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """The table of runs: a row for each cell that finished or failed, in the order of the cells."""
    rows = []
    for cell in cells:
        folder = RunFolder(root / cell.run.identity)
        result, failure = folder.result(), folder.failure()
        if result is None and failure is None:
            continue
        state = {"status": "done"} if result is not None else {"status": "failed", "reason": failure}
        place = {"sweep": cell.sweep, "role": cell.role, "budget": cell.budget}
        rows.append(cell.run.columns() | place | (result or {}) | state)
    return rows


def curves(cells: list[Cell], root: Path, *, ratio: float = 1.15) -> list[dict[str, Any]]:
    """Training loss along every run of the sweep, for the envelope of Hoffmann's first approach.

    Args:
        cells: the sweep.
        root: folder of run folders.
        ratio: each point is the mean loss over steps in which the step number grew by this ratio. The loss of single
            batches is noise, and a lower envelope would pick the luckiest.
    """
    rows = []
    for cell in cells:
        folder = RunFolder(root / cell.run.identity)
        if folder.result() is None or cell.role != "sweep":
            continue
        cost = cell.run.cost
        windows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        points, before = {}, 0  # by how many ratios before the end: step, sum of losses, steps
        for window in windows:
            number = int(math.log(cell.run.steps / window["step"]) / math.log(ratio))
            _, total, count = points.get(number, (0, 0.0, 0))
            steps, before = window["step"] - before, window["step"]
            points[number] = (window["step"], total + steps * window["loss"], count + steps)
        for step, total, count in points.values():
            tokens = step * cell.run.batch_tokens
            rows.append(
                {"run": cell.run.identity, "params": cost.params, "tokens": tokens, "flops": cost.flops(tokens)}
                | {"params_nonembedding": cost.params_nonembedding, "loss": total / count}
            )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows under the union of their columns, floats so that they read back exactly."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
