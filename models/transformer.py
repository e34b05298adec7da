"""The residual block, the repeated stack, the decoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, reshard
from jaxtyping import Array, Float, Int, Key

from models.config import Architecture, Block, NormPlacement, Stack, Tying
from models.execution import Execution, Layers
from models.layers import Normalize, Role, dropout, parameter, repeated, soft_cap, use
from models.positions import Positions, sinusoidal
from parallel.sharding import Rules

RESIDUAL = ("batch", "length", "embed")


class ResidualBlock(nnx.Module):
    """Two residual branches: mix tokens, then transform each."""

    def __init__(self, config: Block, width: int, *, depth_scale: float, std: float | None, execution: Execution):
        self.config = config
        self.mixer = config.mixer.build(width, depth_scale=depth_scale, std=std, execution=execution)
        self.feedforward = config.feedforward.build(width, depth_scale=depth_scale, std=std, execution=execution)
        self.mixer_norm = Normalize(config.norm, width, axis="embed", execution=execution)
        self.feedforward_norm = Normalize(config.norm, width, axis="embed", execution=execution)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        *,
        segments: Int[Array, "batch length"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch length embed"]:
        """One block further along the residual stream."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = self._branch(x, self.mixer_norm, lambda y: self.mixer(y, segments=segments, key=keys[0]), keys[1])
        return self._branch(x, self.feedforward_norm, self.feedforward, keys[2])

    def _branch(self, x, norm, part, key):
        if self.config.placement is NormPlacement.PRE:
            return x + dropout(part(norm(x)), self.config.dropout, key)
        return norm(x + dropout(part(x), self.config.dropout, key))


class RepeatedStack(nnx.Module):
    """A pattern of blocks repeated; every parameter has a leading axis `layers` over the repeats.

    Looped over or written out, the parameters are the same arrays: a checkpoint does not know which.
    """

    def __init__(self, config: Stack, width: int, *, std: float | None, execution: Execution):
        self.repeats, self.execution = config.repeats, execution
        scale = (2 * config.depth) ** -0.5
        blocks = (
            ResidualBlock(block, width, depth_scale=scale, std=std, execution=execution) for block in config.pattern
        )
        self.pattern = nnx.List([repeated(block, config.repeats) for block in blocks])

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        *,
        segments: Int[Array, "batch length"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch length embed"]:
        """Through all blocks."""
        count = len(self.pattern)
        keys = None if key is None else jax.random.split(key, (self.repeats, count))

        def repeat(x, layer):
            blocks, keys = layer
            for index, block in enumerate(blocks):
                x = block(x, segments=segments, key=None if keys is None else keys[index])
            return x

        repeat = self.execution.checkpointed(repeat)
        layers = (tuple(self.pattern), keys)
        if self.execution.layers is Layers.SCAN:
            x, _ = jax.lax.scan(lambda x, layer: (repeat(x, layer), None), x, layers)
            return x
        for layer in _unstack(layers, self.repeats):
            x = repeat(x, layer)
        return x


def _unstack(tree, count: int) -> list:
    """Slices along the leading axis. `split` rather than indexing: its gradient is one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    slices = [[part[0] for part in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [parts[index] for parts in slices]) for index in range(count)]


class Decoder(nnx.Module):
    """A decoder-only language model: embedding, stack, head.

    Its parameters are declared, not yet there; `models.layers.initialize` fills them in.
    """

    def __init__(self, config: Architecture, *, execution: Execution):
        self.config, self.execution = config, execution
        shape, std = (config.vocab, config.width), config.std or config.width**-0.5
        self.table = parameter(shape, ("vocab", "embed"), role=Role.EMBEDDING, std=std)
        if config.embedding.positions is Positions.LEARNED:
            self.positions = parameter((config.length, config.width), ("length", "embed"), role=Role.POSITION, std=std)
        self.stack = RepeatedStack(config.stack, config.width, std=config.std, execution=execution)
        norm = config.final_norm
        self.norm = None if norm is None else Normalize(norm, config.width, axis="embed", execution=execution)
        if config.head.tying is Tying.UNTIED:
            self.head = parameter(shape, ("vocab", "embed"), role=Role.HEAD, std=std)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segments: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """The residual stream before the head.

        Args:
            tokens: token numbers.
            segments: document of each position; other documents are not seen. None: a row is one document.
            positions: place of each token in its document, for learned and sinusoidal positions. None: in the row.
            key: randomness for dropout; None in evaluation.
        """
        embedding_key, stack_key = (None, None) if key is None else jax.random.split(key)
        run = self.execution
        # A lookup in a sharded table has no good layout, so the table is gathered whole.
        table = reshard(self.table[...].astype(run.dtype), run.rules.spec(None, None))
        x = table.at[tokens].get(out_sharding=run.rules.spec(*RESIDUAL))
        # Unit-size entries whatever the initialiser, so that positions and the first branch meet equals.
        if self.config.std is None:
            x = x * self.config.width**0.5
        if self.config.embedding.positions is not Positions.NONE:
            x = x + self._places(tokens, positions)
        x = dropout(x, self.config.embedding.dropout, embedding_key)
        x = self.stack(x, segments=segments, key=stack_key)
        return x if self.norm is None else self.norm(x)

    def _places(self, tokens, positions):
        config, run = self.config, self.execution
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
            positions = reshard(positions, run.rules.spec("batch", "length"))
        if config.embedding.positions is Positions.SINUSOIDAL:
            return sinusoidal(positions, config.width).astype(run.dtype)
        table = use(self.positions, run)
        places = table.at[positions].get(out_sharding=run.rules.spec(*RESIDUAL))
        return places if config.std is not None else places * config.width**0.5

    def logits(self, hidden: Float[Array, "batch length embed"]) -> Float[Array, "batch length vocab"]:
        """Float32 logits of the next token."""
        run, head = self.execution, self.config.head
        matrix = use(self.table if head.tying is Tying.TIED else self.head, run)
        logits = jnp.einsum(
            "bld,vd->blv", hidden, matrix, out_sharding=run.rules.spec("batch", "length", "vocab"),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        return soft_cap(logits, head.logit_cap)


def rules_for(architecture: Architecture, mesh: Mesh) -> Rules:
    """Sharding rules for an architecture on a mesh.

    Where there are fewer key/value heads than tensor shards, those heads are kept whole and the groups of queries that
    share them are split instead.

    Raises:
        ValueError: if neither heads nor groups are divisible by the tensor axis.
    """
    tensor, rules = mesh.shape["tensor"], Rules()
    for block in architecture.stack.pattern:
        mixer = block.mixer
        if mixer.kv_heads % tensor == 0:
            continue
        if (mixer.heads // mixer.kv_heads) % tensor:
            raise ValueError(
                f"{mixer.heads} heads ({mixer.kv_heads} key/value heads) cannot be split over tensor={tensor}; "
                f"choose a tensor size that divides {mixer.heads}, or another number of heads"
            )
        rules = Rules(kv_heads=(), groups=("tensor",))
    return rules
