"""`scaling import`: a model of the library transformers becomes a checkpoint of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Command:
    """Read a trained model from a folder with config.json and safetensors, and write it as a checkpoint.

    The folder is one that the library transformers saves, as model hubs have them: GPT-2, Llama, BERT, RoBERTa, T5,
    BART and more; or one that has ELECTRA's two models as folders `discriminator` and `generator`. Every tensor must
    have its place, and every place its tensor: the first that does not is named. Only safetensors are read, one file or
    several, since other formats can run programs.

    What is written: architecture.json, the model as data; a checkpoint, every bit of it verified when read; and the
    tokenizer's files, as they were.

        scaling import downloads/gpt2
        scaling import downloads/all-MiniLM-L6-v2 -o models/minilm
        scaling generate runs/imported/gpt2 --prompt 'Once upon a time'
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER|URL")]
    """Folder with config.json and model.safetensors, or several files and their index; also gs://bucket/folder."""

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """Folder to write; by default one of the same name in runs/imported."""

    def __call__(self) -> int:
        """Imports, and prints what it was."""
        import jax

        from experiments import trained
        from experiments.buckets import copied, on_disk
        from models import pretrained
        from models.cost import cost
        from models.execution import Execution
        from parallel.mesh import device_mesh

        output = on_disk(self.output or Path("runs/imported") / Path(self.folder).resolve().name, "--output")
        if (output / trained.ARCHITECTURE).exists():
            raise ValueError(f"{output} holds an imported model already; choose another folder with --output")
        with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):
            place = copied(self.folder, *trained.OF_TRANSFORMERS)
            with place.named():
                architecture, model = pretrained.load(place.folder, execution=Execution())
            trained.save(output, model, source=place)
        counts = cost(architecture)
        shape = f"width {architecture.width}, {architecture.depth} blocks, vocabulary {architecture.vocab:,}"
        print(f"{architecture.family}: {shape}, {counts.params:,} parameters, every tensor in its place")
        print(output)
        return 0
