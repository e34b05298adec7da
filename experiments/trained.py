"""A trained model, wherever it lies: the folder of a run, of an imported model, or of the library transformers.

with jax.set_mesh(mesh):
    trained = load("runs/0123456789ab", mesh)
    trained.model, trained.language()

The folder may be in a bucket. Then its small files are copied, and the parameters are read where they are; of a store
that Orbax cannot read, the newest checkpoint is copied too.
"""

import json
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.buckets import CHECKPOINTS, Place, copied, copied_checkpoints
from experiments.checkpoint import Checkpoints, Extent, Restored
from experiments.configuration import from_json, to_json
from experiments.data import prepared as rows
from experiments.data import tokenizer as tokenizers
from experiments.data.prepared import TOKENIZER, Prepared
from experiments.data.sources import nearest_file
from experiments.data.tokenizer import Tokenizer
from experiments.generation.language import FILES, Language, of_folder, of_tokenizer
from experiments.objectives import Sides
from experiments.placement import Placement
from experiments.runs import ROWS, Run, RunFolder, check_rows, write_json
from experiments.train import initial_state
from models import pretrained
from models.execution import Execution
from models.layers import initialize
from models.rules import rules_for
from models.transformer import AnyArchitecture, Model, declare
from parallel.sharding import abstract

ARCHITECTURE = "architecture.json"
OF_TRANSFORMERS = (*FILES, *(f"{side}/config.json" for side in pretrained.PAIR), "*.safetensors", "*.index.json")
"""Files of the library transformers that are read; patterns of names."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model.

    Attributes:
        place: where it lies; small files of a folder in a bucket are copied.
        model: with its parameters on the mesh.
        run: the run it comes from; None for one trained elsewhere.
        step: the step of the run that the parameters are of.
    """

    place: Place
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
            raise ValueError(f"{self.place} was not trained here and has no rows of its own")
        home = Place.of(self.place.url).folder if self.place.url else self.place.folder.resolve()
        found = [folder] if folder else [at for root in home.parents[:3] for at in root.glob(f"data/*-{self.run.rows}")]
        if not found:
            raise FileNotFoundError(
                f"the rows of run {self.run.identity} are not below {home.parent / 'data'}; the command that trained "
                "it makes them there, with --dry-run nothing else; or say where they are with --prepared"
            )
        prepared = rows.load(found[0])
        if prepared.fingerprint != self.run.rows:
            raise ValueError(f"run {self.run.identity} is of rows {self.run.rows}, not of {prepared.fingerprint}")
        with self.place.named():
            check_rows(self.place.folder, prepared)
        return prepared

    def tokenizer(self, folder: Path | None = None) -> Tokenizer:
        """The tokenizer of the run's rows: its own copy, or that of the rows; `folder` as for `prepared`.

        Raises:
            ValueError, FileNotFoundError: as `prepared`, or if rows have none.
        """
        own = self.place.folder / TOKENIZER
        if self.run is None or folder or not own.is_file():
            return self.prepared(folder).tokenizer
        return tokenizers.load(own)

    def language(self, folder: Path | None = None) -> Language:
        """How text becomes the model's tokens and back; `folder` as for `prepared`.

        Raises:
            ValueError, FileNotFoundError: if that is not known.
        """
        paired = Sides.of(self.model.config) is Sides.BOTH
        if self.run is None:
            return of_folder(self.place.folder, paired=paired)
        return of_tokenizer(self.tokenizer(folder), paired=paired)


def load(folder: str | Path, mesh: Mesh) -> Trained:
    """The newest good parameters in a folder, on the mesh, which is in force.

    Args:
        folder: of a run, of an imported model, or with `config.json` and safetensors; a path, or the URL of a bucket.
        mesh: where to.

    Raises:
        FileNotFoundError: if it is no such folder, or the run has no checkpoint.
        ValueError: if what it holds cannot be used, or a URL is none.
        OSError: if a bucket cannot be read.
    """
    place = copied(folder, "run.json", ROWS, TOKENIZER, ARCHITECTURE, *OF_TRANSFORMERS)
    with place.named():
        return _load(place, mesh)


def _load(place: Place, mesh: Mesh) -> Trained:
    here = place.folder
    if (here / "run.json").is_file():
        run = RunFolder(here, place.url).run()
        execution = Placement().execution(run, mesh)
        state = abstract(partial(initial_state, run=run, execution=execution), mesh, execution.rules, jax.random.key(0))
        if (restored := _newest(place, {"model": state.model})) is None:  # the optimizer's state is left where it is
            raise FileNotFoundError(f"run {run.identity} in {place} has no checkpoint yet; train it first")
        return Trained(place=place, model=restored.state["model"], run=run, step=restored.step)
    if (here / ARCHITECTURE).is_file():
        execution = Execution(rules=rules_for(architecture := _architecture(here), mesh))
        init = partial(_imported, architecture=architecture, execution=execution)
        if (restored := _newest(place, abstract(init, mesh, execution.rules, jax.random.key(0)))) is None:
            raise FileNotFoundError(f"{place} has an {ARCHITECTURE} and no checkpoint; import it again")
        return Trained(place=place, model=restored.state["model"])
    if pretrained.holds_model(here):
        execution = Execution(rules=rules_for(pretrained.read_architecture(here), mesh))
        return Trained(place=place, model=pretrained.load(here, execution=execution)[1])
    if not here.exists():
        raise FileNotFoundError(f"there is no folder {place}{nearest_file(here)}")
    runs = sorted((*here.glob("*/run.json"), *here.glob("cells/*/run.json")))
    hint = f"; of the runs in it, {runs[0].parent} is one" if runs else ""
    raise FileNotFoundError(
        f"{place} holds no model: it has no run.json (a run), no {ARCHITECTURE} (imported) and no config.json{hint}"
    )


def _newest(place: Place, state: PyTree[jax.ShapeDtypeStruct]) -> Restored | None:
    """The newest good checkpoint of a folder; None if it has none.

    Raises:
        ValueError, OSError: as `Checkpoints.restore`.
    """
    if not place.url or place.direct:
        with Checkpoints(str(place / CHECKPOINTS)) as checkpoints:
            return checkpoints.restore(state, extent=Extent.PART)
    damaged = 0
    for copy in copied_checkpoints(place):
        try:
            with Checkpoints(copy) as checkpoints, warnings.catch_warnings(action="ignore", category=UserWarning):
                return checkpoints.restore(state, extent=Extent.PART)
        except OSError:
            damaged += 1
            (step,) = (path.name for path in copy.iterdir())
            warnings.warn(f"checkpoint {place / CHECKPOINTS / step} is damaged and passed over", stacklevel=3)
    if damaged:
        raise OSError(f"none of the {damaged} checkpoints in {place / CHECKPOINTS} is good")
    return None


def save(folder: str | Path, model: Model, *, source: Place) -> None:
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
            if (source.folder / name).is_file():
                shutil.copy(source.folder / name, folder / name)
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
