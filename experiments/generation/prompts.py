"""Prompts of unequal length as one batch."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from models.execution import Execution


class Prompts(NamedTuple):
    """What a model goes on from.

    Attributes:
        tokens: what the decoder has read, ends aligned; padding in front.
        first: first place of each row that is not padding.
        inputs: what the encoder reads, padding behind; None without an encoder.
        input_segments: 1 where that is real, 0 where it is padding.
    """

    tokens: Int[Array, "batch length"]
    first: Int[Array, " batch"]
    inputs: Int[Array, "batch inputs"] | None = None
    input_segments: Int[Array, "batch inputs"] | None = None

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, inputs: Sequence[Sequence[int]] | None = None, pad: int = 0) -> Self:
        """Prompts of these token ids, in the memory of the host.

        Args:
            rows: what the decoder has read: at least one token each, such as the one that begins a text.
            inputs: what the encoder reads.
            pad: id that fills up.

        Raises:
            ValueError: if there are no rows, a row is empty, or there are not as many inputs.
        """
        for what, given in (("prompt", rows), ("input", inputs)):
            if given is not None and not all(map(len, given)):
                raise ValueError(f"{what} {list(map(len, given)).index(0)} is empty; a model goes on from a token")
        if not rows or (inputs is not None and len(inputs) != len(rows)):
            raise ValueError(f"{len(rows)} prompts and {len(inputs or ())} inputs do not make a batch")
        length = max(map(len, rows))
        first = np.asarray([length - len(row) for row in rows], np.int32)
        tokens = np.full((len(rows), length), pad, np.int32)
        for line, row, start in zip(tokens, rows, first, strict=True):
            line[start:] = row
        if inputs is None:
            return cls(tokens, first)
        longest = max(map(len, inputs))
        read = np.full((len(inputs), longest), pad, np.int32)
        for line, row in zip(read, inputs, strict=True):
            line[: len(row)] = row
        segments = (np.arange(longest)[None, :] < np.asarray([len(row) for row in inputs])[:, None]).astype(np.int32)
        return cls(tokens, first, read, segments)

    def placed(self, execution: Execution) -> Self:
        """The same on the devices of the mesh in force, rows shared among those that read rows."""
        mesh = jax.sharding.get_mesh()

        def put(array: np.ndarray) -> Array:
            spec = execution.rules.spec("batch", *[None] * (array.ndim - 1))
            return jax.device_put(array, NamedSharding(mesh, spec))

        return jax.tree.map(put, self)
