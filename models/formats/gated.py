"""What folders of Llama and its many relatives share: names of settings, and names of tensors."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.config import Architecture, Block
from models.experts import Experts
from models.formats.tensors import Layout, Settings, Tensor, activation_name, attention, linear, norm
from models.head import Tying
from models.positions import LinearScaling, LlamaScaling

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "feedforward_norm"}
"""Their norms of a layer, and ours."""

Parts = Callable[[str, str, Block, int], Iterator[Tensor]]


def read(config: Settings, *, tied: bool = False, activation: str = "hidden_act") -> dict[str, Any]:
    """Settings of the zoo that all these folders have.

    Args:
        config: theirs.
        tied: whether the head is tied where the folder does not say.
        activation: the setting that names the non-linearity.
    """
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return dict(
        width=width,
        depth=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim", width // heads),
        vocab=config["vocab_size"],
        length=config["max_position_embeddings"],
        hidden=config["intermediate_size"],
        activation=config.activation(activation),
        rotary_base=float(config.get("rope_theta", 10_000.0)),
        tying=Tying.TIED if config.get("tie_word_embeddings", tied) else Tying.UNTIED,
        std=config.get("initializer_range", 0.02),
    )


def write(architecture: Architecture, name: str, *, activation: str = "hidden_act") -> dict[str, Any]:
    """The same in their words; `name` is that of the class in transformers."""
    block = architecture.decoder.pattern[0]
    mlp = block.feedforward.mlp if isinstance(block.feedforward, Experts) else block.feedforward
    return {
        "architectures": [name],
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": block.mixer.heads,
        "num_key_value_heads": block.mixer.kv_heads,
        "head_dim": block.mixer.head_dim,
        "vocab_size": architecture.vocab,
        "max_position_embeddings": architecture.length,
        "intermediate_size": mlp.hidden,
        activation: activation_name(mlp.activation),
        "rope_theta": block.mixer.rotary.base,
        "tie_word_embeddings": architecture.head.tying is Tying.TIED,
        "initializer_range": architecture.std or 0.02,
    }


def scaling(config: Settings) -> LlamaScaling | LinearScaling | None:
    """How rotation is slowed.

    Raises:
        ValueError: if in a way that we do not have.
    """
    stored = config.get("rope_scaling", {})
    kind = stored.get("rope_type", stored.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=float(stored["factor"]))
    if kind != "llama3":
        raise ValueError(f"config.json: rope_scaling of type {kind!r} cannot be imported, only 'linear' and 'llama3'")
    return LlamaScaling(
        factor=float(stored["factor"]),
        low=float(stored["low_freq_factor"]),
        high=float(stored["high_freq_factor"]),
        trained=stored["original_max_position_embeddings"],
    )


def said(scaling: LlamaScaling | LinearScaling | None) -> dict[str, Any] | None:
    """The same in their words."""
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.trained,
    }


def separate(theirs: str, ours: str, block: Block, layer: int) -> Iterator[Tensor]:
    """A tensor for each product of a layer."""
    yield from attend(theirs, ours, block, layer)
    for part in ("gate", "up", "down"):
        bias = block.feedforward.biases
        yield from linear(f"{theirs}.mlp.{part}_proj", f"{ours}.feedforward.{part}", layer=layer, bias=bias)


def attend(theirs: str, ours: str, block: Block, layer: int) -> Iterator[Tensor]:
    """A tensor for each product of attention, and for its norms of queries and keys."""
    theirs, ours = f"{theirs}.self_attn", f"{ours}.mixer"
    yield from attention(theirs, ours, PROJECTIONS, layer=layer, bias=block.mixer.biases)
    if block.mixer.qk_norm:
        yield from norm(f"{theirs}.q_norm", f"{ours}.query_norm", layer=layer, shift=False)
        yield from norm(f"{theirs}.k_norm", f"{ours}.key_norm", layer=layer, shift=False)


def tensors(
    architecture: Architecture, *, norms: Mapping[str, str] = NORMS, parts: Parts = separate
) -> Iterator[Tensor]:
    """All tensors of a decoder.

    Args:
        architecture: the model.
        norms: their norms of a layer, and ours; none where norms have no parameters.
        parts: the other tensors of a layer.
    """
    stack = architecture.decoder
    yield Tensor("model.embed_tokens.weight", ("table",), Layout.TABLE)
    for layer in range(stack.depth):
        repeat, index = divmod(layer, stack.period)
        theirs, ours = f"model.layers.{layer}", f"stack.pattern.{index}"
        yield from parts(theirs, ours, stack.pattern[index], repeat)
        for name, param in norms.items():
            yield from norm(f"{theirs}.{name}", f"{ours}.{param}", layer=repeat, shift=False)
    if norms:
        yield from norm("model.norm", "norm", shift=False)
    if architecture.head.tying is Tying.UNTIED:
        yield Tensor("lm_head.weight", ("head.matrix",), Layout.TABLE)
