"""`scaling train`: one model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

import tyro

from experiments.commands.options import ModelOptions, ScheduleOptions, TextOptions, answering, objective_for, reading
from experiments.objectives.named import Name
from experiments.optimizer import AdamW
from experiments.placement import Placement


class PrecisionChoice(Enum):
    """Type of activations; auto is bfloat16 where the hardware has it."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train one model on text, labelled text, pairs or images, and evaluate it on what is held out.

    It leaves a folder that can be gone on from. The same command again goes on where it was stopped, or shows the
    result if it is finished:

        scaling train                                             # 100k parameters on the embedded corpus
        scaling train --data.text 'books/*.txt' --model.family llama --model.params 1e6 --tokens-per-param 20
        scaling train --model.width 128 --model.depth 4 --model.heads 4 --steps 2000 --schedule.peak 3e-3
        scaling train --data.images digits.npz --model.family vit --model.patch 4 --shift 2
        scaling train --data.pairs en_es.tsv --model.family transformer
        scaling train ... --placement.mesh fsdp=4,tensor=2        # on eight devices
        scaling train ... --placement.mesh fsdp=2,sequence=4      # long rows, a quarter of each on a device
        scaling train ... -o gs://bucket/runs                     # where disks do not last, or are not shared
        scaling train ... --dry-run                               # what it would cost

    How long: one of --steps, --tokens, --flops and --tokens-per-param.
    """

    data: TextOptions = field(default_factory=TextOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    objective: tyro.conf.EnumChoicesFromValues[Name] | None = None
    """What is predicted of text; by default causal for a decoder, masked for an encoder, span-corruption for both."""
    shift: int = 0
    """Of images: pixels by which each is moved at most in training, another way every time."""
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    optimizer: AdamW = field(default_factory=AdamW)
    steps: int | None = None
    """Optimizer steps."""
    tokens: float | None = None
    """Training tokens."""
    flops: float | None = None
    """Training FLOPs, exact count."""
    tokens_per_param: float | None = None
    """Training tokens per parameter; 20 by default."""
    batch: int = 8
    """Rows per step."""
    precision: PrecisionChoice = PrecisionChoice.AUTO
    seed: int = 0
    """Of initialisation, order and dropout."""
    evaluation_rows: int | None = None
    """Held-out rows to evaluate on; all by default."""
    placement: Placement = field(default_factory=Placement)
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER|URL")] = "runs"
    """Folder of runs, or gs://bucket/folder (extra `gcs`); in it this one's is named by the hash of what defines it."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the run and what it would cost, and train nothing."""

    def __call__(self) -> int:
        """Trains and prints the result."""
        from experiments.launch.environment import restart_for_cpu

        restart_for_cpu()
        from rich.console import Console

        from experiments.buckets import Place
        from experiments.commands.options import prepare_with_progress
        from experiments.launch.lock import exclusive
        from experiments.runs import RunFailed, RunFolder
        from experiments.show import dry_run_table, progress, result_lines, stop_on_interrupt
        from experiments.train import Stopped, train
        from models import zoo
        from parallel import distributed

        distributed.start()
        lead = distributed.is_lead()
        console = Console(quiet=not lead)
        home = Place.of(self.output)
        zoo.family(self.model.family)  # a mistyped name should not cost a tokenizer first
        with distributed.lead_first("rows"):
            prepared = prepare_with_progress(self.data.config(), home.folder / "data", console)
        run = self.run(prepared)
        if self.dry_run:
            console.print(dry_run_table([run], workers=1))
            return 0
        place = home / run.identity
        folder = RunFolder(place.folder, place.url)
        with exclusive(folder.path) if lead else nullcontext(), progress(console) as bar:
            task = bar.add_task(f"run {run.identity}", total=run.steps, note="compiling")

            def report(event):
                loss = "" if event["loss"] is None else f"loss {event['loss']:.4f}  "
                note = f"{loss}{event['tokens_per_second']:,.0f} tokens/s"
                bar.update(task, completed=event["step"], note=note)

            with stop_on_interrupt() as stop:
                try:
                    train(run, folder, prepared, placement=self.placement, report=report, stop=stop)
                except Stopped:
                    raise KeyboardInterrupt from None
                except RunFailed as failure:
                    if lead:
                        folder.fail(str(failure), for_good=True)
                    raise
        if lead:  # others may be here before it has written the result
            console.print(*result_lines(run, folder), sep="\n", highlight=False)
        return 0

    def run(self, prepared):
        """The run that the options describe."""
        from experiments.runs import Run
        from experiments.sweep import RateRule
        from models.execution import Precision

        architecture = answering(self.model.build(**reading(prepared, self.objective)), prepared)
        objective = objective_for(self.objective, architecture, prepared, shift=self.shift)
        if self.precision is PrecisionChoice.AUTO:
            import jax

            from parallel.hardware import has_fast_bf16

            precision = Precision.BFLOAT16 if has_fast_bf16(jax.devices()[0]) else Precision.FLOAT32
        else:
            precision = Precision(self.precision.value)

        def run(steps: int) -> Run:
            return Run(
                architecture=architecture,
                data=self.data.config(),
                rows=prepared.fingerprint,
                schedule=self.schedule.build(RateRule().peak(architecture, steps)),
                batch=self.batch,
                steps=steps,
                objective=objective,
                optimizer=self.optimizer,
                precision=precision,
                seed=self.seed,
                evaluation_rows=self.evaluation_rows,
            )

        for name in ("steps", "tokens", "flops", "tokens_per_param"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} is {value:g} and must be more than 0")
        cost, per_step = run(1).cost, run(1).batch_tokens
        lengths = {
            "steps": self.steps,
            "tokens": self.tokens and round(self.tokens / per_step),
            "flops": self.flops and round(self.flops / (cost.flops_per_token * per_step)),
            "tokens_per_param": self.tokens_per_param and round(self.tokens_per_param * cost.params / per_step),
        }
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) > 1:
            raise ValueError(
                f"a run has one length: give --steps, --tokens, --flops or --tokens-per-param, not {len(given)}"
            )
        return run(max(1, next(iter(given.values()), round(20 * cost.params / per_step))))
