"""`scaling generate`: a trained model writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.generation.beams import BeamSearch, LengthPenalty
from experiments.generation.sampling import Sampling


@dataclass(frozen=True)
class Command:
    """Let a trained model go on from a text, or, with an encoder, answer to one.

    FOLDER is that of a run (what `scaling train` printed), of an imported model, or one with config.json and
    safetensors. Tokens are drawn from what the model says; --temperature 0 takes the likeliest each time, --beams
    searches for the likeliest text. The same seed draws the same texts.

        scaling generate runs/0123456789ab --prompt 'def main('
        scaling generate runs/0123456789ab --prompt 'def main(' --temperature 0.8 --top-p 0.95 --samples 3
        scaling generate runs/imported/t5-small --prompt 'translate English to German: Hello.' --beams 4
        scaling generate downloads/gpt2 --ids --prompt '464 2068 7586'        # without a tokenizer
        scaling generate gs://bucket/runs/0123456789ab --prompt 'def main('   # a run in a bucket
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER|URL")]
    """The model: folder of a run, of an imported model, or of transformers; also gs://bucket/folder (extra `gcs`)."""

    prompt: tuple[str, ...] = ("",)
    """Texts to go on from, each quoted; without one, the model begins from nothing."""

    ids: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Prompts are token ids, separated by spaces, and so is what is printed."""

    new: int = 64
    """Most tokens to write."""

    samples: int = 1
    """Texts for each prompt; with --beams, how many of those found are printed."""

    temperature: float = 1.0
    """Below 1 prefers what is likely already; 0 takes the likeliest token."""

    top_k: int | None = None
    """Draw from this many likeliest tokens only."""

    top_p: float | None = None
    """Draw from the fewest likeliest tokens that together have this probability."""

    beams: int | None = None
    """Search for the likeliest text, this many kept at each length, in place of drawing."""

    penalty: tyro.conf.EnumChoicesFromValues[LengthPenalty] = LengthPenalty.GNMT
    """What keeps a search from preferring short texts: gnmt (Wu et al. 2016), or power, the length to --alpha."""

    alpha: float = 0.6
    """How much it does; 0 for nothing."""

    seed: int = 0
    """Decides what is drawn."""

    mesh: str = "data=1"
    """Devices, as in 'tensor=4'."""

    prepared: str = ""
    """Folder of the run's prepared rows, if it is not where `scaling train` puts them."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON object for each text: prompt, text, tokens."""

    def __call__(self) -> int:
        """Prints what was written."""
        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if self.beams is not None and (self.top_k or self.top_p):
            raise ValueError("a search draws nothing: leave out --top-k and --top-p, or --beams")
        if self.samples < 1 or self.samples > (self.beams or self.samples):
            raise ValueError(f"--samples {self.samples} must be 1 or more, and no more than --beams")
        how = BeamSearch(beams=self.beams, penalty=self.penalty, alpha=self.alpha) if self.beams is not None else None
        import jax

        from experiments import trained
        from experiments.buckets import on_disk
        from experiments.objectives import Sides
        from parallel.mesh import MeshShape

        prepared = on_disk(self.prepared, "--prepared") if self.prepared else None
        shape = MeshShape.parse(self.mesh)
        if shape.sequence != 1:
            raise ValueError(f"--mesh {shape}: a token is written at a time, and there is no length to split")
        mesh = shape.build(shape.devices and jax.devices()[: shape.devices])
        with jax.set_mesh(mesh):
            found = trained.load(self.folder, mesh)
            sides = Sides.of(found.model.config)
            if sides not in (Sides.DECODER, Sides.BOTH):
                raise ValueError(f"{self.folder}: {found.model.config.family} is {sides.value}, which cannot write")
            language = None if self.ids else found.language(prepared)
            for prompt, texts in zip(self.prompt, self._written(found, language, sampling, how, mesh), strict=True):
                for text, tokens in texts:
                    self._show(prompt, text, tokens, paired=sides is Sides.BOTH)
        return 0

    def _written(
        self, found, language, sampling: Sampling, how: BeamSearch | None, mesh
    ) -> list[list[tuple[str, list[int]]]]:
        """For each prompt, texts and their tokens."""
        import jax
        import numpy as np

        from experiments.generation import Prompts, search, write

        vocab = found.model.config.vocab
        end, pad, start = (language.end, language.pad, language.start) if language else (None, 0, 0)
        rows = [language.encode(prompt) if language else _ids(prompt, vocab) for prompt in self.prompt]
        each = 1 if how else self.samples
        rows = [row for row in rows for _ in range(each)]
        count, shards = len(rows), found.model.execution.rules.shards("batch", mesh)
        rows += rows[:1] * (-count % shards)  # as many as the devices share evenly
        paired = found.model.config.encoder is not None
        prompts = Prompts.of([[start]] * len(rows), inputs=rows, pad=pad) if paired else Prompts.of(rows, pad=pad)
        prompts = prompts.placed(found.model.execution)
        if how:
            best = search(found.model, prompts, new=self.new, end=-1 if end is None else end, how=how, pad=pad)
            tokens, lengths = (np.asarray(array)[:count, : self.samples] for array in (best.tokens, best.lengths))
        else:
            settings = dict(new=self.new, sampling=sampling, end=end, pad=pad)
            done = write(found.model, prompts, jax.random.key(self.seed), **settings)
            tokens = np.asarray(done.tokens)[:count].reshape(-1, each, self.new)
            lengths = np.asarray(done.lengths)[:count].reshape(-1, each)

        def told(line, length):
            kept = [token for token in line[:length].tolist() if token != end]
            return (language.decode(kept) if language else " ".join(map(str, kept))), kept

        pairs = zip(tokens, lengths, strict=True)
        return [[told(*one) for one in zip(*group, strict=True) if one[1]] for group in pairs]

    def _show(self, prompt: str, text: str, tokens: list[int], *, paired: bool) -> None:
        if self.json:
            print(json.dumps({"prompt": prompt, "text": text, "tokens": tokens}, ensure_ascii=False))
        else:
            between = " " if self.ids and prompt else ""
            print(text if paired else f"{prompt}{between}{text}")


def _ids(text: str, vocab: int) -> list[int]:
    """Token ids as they were written.

    Raises:
        ValueError: if they are no numbers, or not in the vocabulary.
    """
    try:
        ids = [int(word) for word in text.split()]
    except ValueError:
        raise ValueError(f"--ids: '{text}' are not token ids, such as '464 2068 7586'") from None
    if not ids or min(ids) < 0 or max(ids) >= vocab:
        raise ValueError(f"--ids: '{text}' must be one token id or more, each from 0 to {vocab - 1}")
    return ids
