"""A trained model, wherever it lies: the folder of a run, of an imported model, or of the library transformers.

with jax.set_mesh(mesh):
    trained = load("runs/0123456789ab", mesh)
    trained.model, trained.language()
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from experiments.checkpoint import Checkpoints
from experiments.configuration import from_json, to_json
from experiments.data import prepared as rows
from experiments.data.prepared import Prepared
from experiments.generation.language import FILES, Language, of_folder, of_tokenizer
from experiments.objectives import Sides
from experiments.placement import Placement
from experiments.runs import Run, RunFolder, write_json
from experiments.train import initial_state
from models import pretrained
from models.execution import Execution
from models.layers import initialize
from models.rules import rules_for
from models.transformer import AnyArchitecture, Model, declare
from parallel.sharding import abstract

ARCHITECTURE = "architecture.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model.

    Attributes:
        folder: where it lies.
        model: with its parameters on the mesh.
        run: the run it comes from; None for one trained elsewhere.
        step: the step of the run that the parameters are of.
    """

    folder: Path
    model: Model
    run: Run | None = None
    step: int | None = None

    def prepared(self, folder: Path | None = None) -> Prepared:
        """The rows the run was trained on.

        Args:
            folder: where they are; None to look where `scaling train` and `scaling sweep` put them.

        Raises:
            ValueError: if the model was not trained here, or the rows are of another run.
            FileNotFoundError: if they are not found.
        """
        if self.run is None:
            raise ValueError(f"{self.folder} was not trained here and has no rows of its own")
        above = self.folder.resolve().parents[:3]
        found = [folder] if folder else [path for root in above for path in root.glob(f"data/*-{self.run.rows}")]
        if not found:
            raise FileNotFoundError(
                f"the rows of run {self.run.identity} are not below {above[0] / 'data'}; say where with --prepared"
            )
        prepared = rows.load(found[0])
        if prepared.fingerprint != self.run.rows:
            raise ValueError(f"run {self.run.identity} is of rows {self.run.rows}, not of {prepared.fingerprint}")
        return prepared

    def language(self, folder: Path | None = None) -> Language:
        """How text becomes the model's tokens and back; `folder` as for `prepared`.

        Raises:
            ValueError, FileNotFoundError: if that is not known.
        """
        paired = Sides.of(self.model.config) is Sides.BOTH
        if self.run is None:
            return of_folder(self.folder, paired=paired)
        return of_tokenizer(self.prepared(folder).tokenizer, paired=paired)


def load(folder: str | Path, mesh: Mesh) -> Trained:
    """The newest good parameters in a folder, on the mesh, which is in force.

    Args:
        folder: of a run, of an imported model, or with `config.json` and safetensors.
        mesh: where to.

    Raises:
        FileNotFoundError: if it is no such folder, or the run has no checkpoint.
        ValueError: if what it holds cannot be used.
    """
    folder = Path(folder)
    if (folder / "run.json").is_file():
        run = RunFolder(folder).run()
        execution = Placement().execution(run, mesh)
        state = abstract(partial(initial_state, run=run, execution=execution), mesh, execution.rules, jax.random.key(0))
        with Checkpoints(RunFolder(folder).checkpoints) as checkpoints:
            restored = checkpoints.restore(state)
        if restored is None:
            raise FileNotFoundError(f"run {run.identity} in {folder} has no checkpoint yet; train it first")
        return Trained(folder=folder, model=restored.state.model, run=run, step=restored.step)
    if (folder / ARCHITECTURE).is_file():
        execution = Execution(rules=rules_for(architecture := _architecture(folder), mesh))
        init = partial(_imported, architecture=architecture, execution=execution)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            restored = checkpoints.restore(abstract(init, mesh, execution.rules, jax.random.key(0)))
        if restored is None:
            raise FileNotFoundError(f"{folder} has an {ARCHITECTURE} and no checkpoint; import it again")
        return Trained(folder=folder, model=restored.state["model"])
    if pretrained.holds_model(folder):
        execution = Execution(rules=rules_for(pretrained.read_architecture(folder), mesh))
        return Trained(folder=folder, model=pretrained.load(folder, execution=execution)[1])
    raise FileNotFoundError(
        f"{folder} holds no model: it has no run.json (a run), no {ARCHITECTURE} (imported) and no config.json"
    )


def save(folder: str | Path, model: Model, *, source: Path) -> None:
    """Writes a model as a checkpoint with its architecture as data, and what belongs to its text.

    Args:
        folder: a new folder.
        model: the model.
        source: the folder that it was read from, whose tokenizer is copied.

    Raises:
        ValueError: if there is one already.
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    if (folder / ARCHITECTURE).exists():
        raise ValueError(f"{folder} holds an imported model already; choose another folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(0, {"model": model}, metadata={"source": str(source)})
    write_json(folder / ARCHITECTURE, to_json(model.config))  # last: its presence says that all is there


def _imported(key: jax.Array, *, architecture: AnyArchitecture, execution: Execution) -> dict[str, Model]:
    return {"model": initialize(declare(architecture, execution=execution), key, execution.rules)}


def _architecture(folder: Path) -> AnyArchitecture:
    path = folder / ARCHITECTURE
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return from_json(AnyArchitecture, stored, str(path))
