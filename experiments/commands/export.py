"""`scaling export`: a model of ours becomes a folder that the library transformers loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Command:
    """Write a trained model as config.json and model.safetensors, which the library transformers loads.

    The model is that of a run's newest checkpoint, or one that `scaling import` made; parameters go out bit for bit.
    It must be of a family that transformers has, with settings that its config.json can say: gpt2, llama, bert, t5 and
    others, but not the family `decoder`. A SentencePiece tokenizer goes along as tokenizer.model. ELECTRA's two models
    go into the folders `discriminator` and `generator` of OUT.

        scaling export runs/0123456789ab exported
        python -c "import transformers; transformers.AutoModel.from_pretrained('exported')"
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|URL")]
    """Folder of a run, or of an imported model; also gs://bucket/folder (extra `gcs`)."""

    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to write, new or empty, on this machine."""

    prepared: str = ""
    """Folder of the run's prepared rows, if it is not where `scaling train` puts them."""

    def __call__(self) -> int:
        """Exports, and prints where to."""
        import shutil

        import jax

        from experiments import trained
        from experiments.buckets import on_disk
        from experiments.data.tokenizer import SentencePieceTokenizer
        from experiments.generation.language import PIECES
        from models import pretrained
        from parallel.mesh import device_mesh

        output, prepared = on_disk(self.output, "OUT"), on_disk(self.prepared, "--prepared") if self.prepared else None
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} is there already and not an empty folder; choose another one")
        mesh = device_mesh("data=1", jax.devices()[:1])
        with jax.set_mesh(mesh):
            found = trained.load(self.folder, mesh)
            pretrained.save(output, found.model)
        if found.run is None:
            for name in ("tokenizer.json", *PIECES):
                if (found.place.folder / name).is_file():
                    shutil.copy(found.place.folder / name, output / name)
        elif isinstance(tokenizer := found.tokenizer(prepared), SentencePieceTokenizer):
            tokenizer.save(output / "tokenizer.model")
        print(output)
        return 0
