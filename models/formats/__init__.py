"""Model folders of other makers: what their `config.json` says, and where in their tensors each parameter lies.

One file a family of formats, each a function between configurations in both directions and a list of tensors;
`models.pretrained` reads and writes with them.
"""

from models.formats import bart, bert, gpt2, llama, t5
from models.formats.tensors import Format

FORMATS: dict[str, Format] = {
    model_type: form for room in (gpt2, llama, bert, t5, bart) for model_type, form in room.FORMATS.items()
}
