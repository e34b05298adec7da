"""Named architectures: families of any size, and published sizes of them.

A family is a function from sizes to an `Architecture`; a published size is a value made by one. Each file here has one
family, or a few that belong together, and files are found by themselves: a new architecture is one new file.

    zoo.llama(width=512, depth=8, heads=8, vocab=1024, length=256, kv_heads=2)
    zoo.make("llama", width=512, depth=8, heads=8, vocab=1024, length=256, kv_heads=2)   # by name
    zoo.get("gpt2-xl")

Every family takes `width` (size of the residual stream), `depth` (number of blocks, on either side), `heads` (query
heads), `vocab` (vocabulary size), `length` (longest row in tokens) and whatever else `SETTINGS` lists; its own choices
are defaults. Authors trained with dropout where that was the habit; here it is 0 unless `dropout` says otherwise.
"""

import importlib
import pkgutil

from models.zoo.base import SETTINGS, gated_hidden
from models.zoo.registry import FAMILIES, PUBLISHED, Published, family, get, make

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
globals().update({build.__name__: build for build in FAMILIES.values()})  # zoo.llama is the family, not its file

__all__ = ["FAMILIES", "PUBLISHED", "SETTINGS", "Published", "family", "gated_hidden", "get", "make"]
