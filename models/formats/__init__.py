"""Model folders of other makers: what their `config.json` says, and where in their tensors each parameter lies.

One file a family of formats, each a function between configurations in both directions and a list of tensors;
`models.pretrained` reads and writes with them. Files are found by themselves: a `FORMATS` in one is known.
"""

import importlib
import pkgutil

from models.formats.tensors import Format

_FILES = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]

FORMATS: dict[str, Format] = {
    model_type: form for file in _FILES for model_type, form in getattr(file, "FORMATS", {}).items()
}
