"""Weights in and out: folders with `config.json` and safetensors, as the library transformers has them.

    architecture, model = pretrained.load("folder", execution=Execution())
    pretrained.save("other", model)

Parameters come in as float32 and go out as such, bit for bit. Dropout is not read: an architecture comes in with none.
Only safetensors are read, since other formats can run programs. ELECTRA's two models are two such folders in one.
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from models.config import Architecture
from models.detection import Detection, Detector
from models.execution import Execution
from models.formats import FORMATS
from models.formats.tensors import Format, Settings
from models.transformer import AnyArchitecture, Model, declare
from parallel.sharding import is_variable

PAIR = ("discriminator", "generator")
"""Folders of the two models that learn together."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a `config.json` describes.

    Raises:
        ValueError: for a kind of model that is not known (the nearest is named) or a setting that has no counterpart.
    """
    return _format(config.get("model_type")).read(Settings(dict(config)))


def holds_model(folder: Path) -> bool:
    """Whether there is something to read, if only by its looks."""
    return (folder / "config.json").is_file() or _is_pair(folder)


def read_architecture(folder: str | os.PathLike) -> AnyArchitecture:
    """The architecture of a folder, its tensors unread.

    Raises:
        FileNotFoundError: if it has no `config.json`.
        ValueError: if that is damaged, or as for `architecture_of`.
    """
    if _is_pair(folder := Path(folder)):
        return Detection(family="electra-pair", **{side: read_architecture(folder / side) for side in PAIR})
    return architecture_of(_read_json(folder / "config.json"))


def load(folder: str | os.PathLike, *, execution: Execution) -> tuple[AnyArchitecture, Model]:
    """A trained model, each parameter in its resting sharding on the mesh in force.

    Args:
        folder: has `config.json` and `model.safetensors`, or several files and their index; or folders `discriminator`
            and `generator` that have them.
        execution: how to compute.

    Raises:
        FileNotFoundError: if the folder lacks a file.
        ValueError: for a model that is not known, and for tensors that are missing, extra or of another shape, by name.
    """
    folder = Path(folder)
    if _is_pair(folder):
        architecture = read_architecture(folder)
        sides = {side: load(folder / side, execution=execution)[1] for side in PAIR}
        both = Detector(architecture, **sides)
        kept, brought = (_params(side) for side in (both.generator, sides["generator"]))
        for path, param in brought.items():
            if not np.array_equal(param[...], kept[path][...]):
                raise ValueError(f"{folder}: generator and discriminator share '{path}', and theirs differ")
        return architecture, both
    config = _read_json(folder / "config.json")
    architecture, form = architecture_of(config), _format(config["model_type"])
    model = declare(architecture, execution=execution)
    with ExitStack() as stack:
        read = _open(folder, stack)
        return architecture, fill(model, form, read)


def save(folder: str | os.PathLike, model: Model) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers loads; for each of two models in its own folder.

    Raises:
        ValueError: if no format has the architecture.
    """
    if isinstance(model, Detector):
        for side in PAIR:
            save(Path(folder) / side, getattr(model, side))
        return
    from safetensors.numpy import save_file

    folder, family = Path(folder), model.config.family
    form = form_of(family)
    model_type = next(name for name, known in FORMATS.items() if known is form)
    written = {"model_type": model_type} | form.write(model.config)
    said, meant = replace(architecture_of(written), family=family), without_dropout(model.config)
    if said != meant:
        raise ValueError(f"{family}: config.json cannot say that {_difference(said, meant)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (
        (SINGLE, lambda path: save_file(tensors(model, form), path, metadata={"format": "pt"})),
        ("config.json", lambda path: path.write_text(json.dumps(written, indent=2) + "\n")),
    ):
        temporary = folder / f".{name}.{os.getpid()}"
        write(temporary)
        os.replace(temporary, folder / name)


def form_of(family: str) -> Format:
    """The format that holds models of a family of the zoo.

    Raises:
        ValueError: if none does.
    """
    known = {name: form for form in FORMATS.values() for name in form.families}
    if family not in known:
        raise ValueError(f"no format of weights has the family '{family}'; there are {', '.join(known)}")
    return known[family]


def without_dropout(config: Any) -> Any:
    """A configuration in which nothing is dropped."""
    if isinstance(config, tuple):
        return tuple(map(without_dropout, config))
    if not is_dataclass(config):
        return config
    values = {field.name: without_dropout(getattr(config, field.name)) for field in fields(config)}
    return replace(config, **(values | {"dropout": 0.0} if "dropout" in values else values))


def fill(model: Model, form: Format, read: Mapping[str, Callable[[], np.ndarray]]) -> Model:
    """A declared model with the values of tensors.

    Args:
        model: its parameters declared.
        form: where each parameter lies.
        read: reads a tensor, by its name.

    Raises:
        ValueError: for tensors that are missing, extra or of another shape.
    """
    params = _params(model)
    wanted = list(form.tensors(model.config))
    names = {tensor.name: _present(tensor.name, form, read) for tensor in wanted}
    if missing := [name for name, present in names.items() if present is None]:
        near = difflib.get_close_matches(missing[0], read, n=1)
        hint = f"; is '{near[0]}' meant?" if near else ""
        raise ValueError(f"{len(missing)} tensors are missing, the first is '{missing[0]}'{hint}")
    known = set(names.values())
    extra = [
        name for name in read if name not in known and not name.endswith((*form.copies, *form.ignored, *form.zeros))
    ]
    if extra:
        raise ValueError(f"{len(extra)} tensors have no place in the model, the first is '{extra[0]}'")
    for name in (name for name in read if name.endswith(form.zeros) and form.zeros):
        if np.any(read[name]()):
            raise ValueError(f"tensor '{name}' is not zero and has no place in the model")
    values = {path: np.empty(param.shape, np.float32) for path, param in params.items()}
    for tensor in wanted:
        places = [values[path] if tensor.layer is None else values[path][tensor.layer] for path in tensor.params]
        inputs = [_inputs(params[path], place.shape) for path, place in zip(tensor.params, places, strict=True)]
        array = np.asarray(read[names[tensor.name]](), np.float32)
        for place, part in zip(places, tensor.split(array, [place.shape for place in places], inputs), strict=True):
            place[...] = part
    mesh, rules = jax.sharding.get_mesh(), model.execution.rules

    def placed(path: tuple, param: nnx.Param) -> nnx.Param:
        value = values[_name(path)]
        return param.replace(
            jax.device_put(value, NamedSharding(mesh, rules.resting_spec(*param.get_metadata("axes"))))
        )

    return jax.tree_util.tree_map_with_path(placed, model, is_leaf=is_variable)


def tensors(model: Model, form: Format) -> dict[str, np.ndarray]:
    """The tensors of a model, or of anything of its structure, such as a gradient."""
    params, found = _params(model), {}
    for tensor in form.tensors(model.config):
        arrays = [np.asarray(params[path][...]) for path in tensor.params]
        values = arrays if tensor.layer is None else [array[tensor.layer] for array in arrays]
        inputs = [_inputs(params[path], value.shape) for path, value in zip(tensor.params, values, strict=True)]
        found[tensor.name] = np.ascontiguousarray(tensor.join(values, inputs))
    return found


def _is_pair(folder: Path) -> bool:
    return all((folder / side / "config.json").is_file() for side in PAIR)


def _difference(one: Any, other: Any, where: str = "architecture") -> str:
    """The first setting of the second configuration that is not that of the first."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(a, b, f"{where}.{index}") for index, (a, b) in enumerate(zip(one, other, strict=True))]
    elif is_dataclass(one) and type(one) is type(other):
        pairs = [(getattr(one, f.name), getattr(other, f.name), f"{where}.{f.name}") for f in fields(one)]
    else:
        return f"{where} is {other}"
    return next(_difference(*pair) for pair in pairs if pair[0] != pair[1])


def _params(model: Model) -> dict[str, nnx.Param]:
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_variable)
    return {_name(path): param for path, param in leaves}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _inputs(param: nnx.Param, shape: tuple[int, ...]) -> int:
    """Entries of a product's input: all axes but the last of those into the residual stream, else the first."""
    axes = param.get_metadata("axes")
    return int(np.prod(shape[:-1])) if axes[-1] == "embed" else shape[0]


def _present(name: str, form: Format, read: Mapping[str, Any]) -> str | None:
    """The name under which a tensor is in a folder, which may have left out the beginning of all names."""
    short = name.removeprefix(form.optional)
    return name if name in read else short if short in read else None


def _format(model_type: str | None) -> Format:
    if model_type not in FORMATS:
        near = difflib.get_close_matches(str(model_type), FORMATS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(FORMATS)}"
        raise ValueError(f"no weights of a model of type '{model_type}' can be read or written; {hint}")
    return FORMATS[model_type]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not the folder of a model (no {path.name})")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _open(folder: Path, stack: ExitStack) -> dict[str, Callable[[], np.ndarray]]:
    """A reader for each tensor of the folder."""
    from safetensors import SafetensorError, safe_open

    files = [SINGLE]
    if (folder / INDEX).is_file():
        files = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    readers = {}
    for name in files:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; only safetensors can be read")
        try:
            # As arrays of JAX, which have bfloat16, and not of NumPy.
            file = stack.enter_context(safe_open(folder / name, framework="flax"))
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged: {error}") from error
        for key in file.keys():  # noqa: SIM118 - it is no dictionary
            readers[key] = lambda file=file, key=key: np.asarray(file.get_tensor(key))
    return readers
