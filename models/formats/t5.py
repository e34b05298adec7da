"""Folders of T5, T5 1.1 and mT5."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from models import zoo
from models.config import Architecture, Stack
from models.feedforward import Activation, Form
from models.formats.tensors import (
    ACTIVATIONS,
    Format,
    Layout,
    Settings,
    Tensor,
    activation_name,
    attention,
    linear,
    norm,
)
from models.head import Tying
from models.layers import Norm
from models.positions import RelativeBias


def _read(config: Settings) -> Architecture:
    stored = config.get("feed_forward_proj", "relu")
    gated = stored.startswith("gated-")
    name = stored.removeprefix("gated-")
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json: feed_forward_proj '{stored}' is not one of {', '.join(ACTIVATIONS)}")
    # The authors' "gated-gelu" is the tanh form, unlike "gelu" elsewhere.
    activation = Activation.GELU if stored == "gated-gelu" else ACTIVATIONS[name]
    made = zoo.t5(
        width=config["d_model"],
        depth=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        vocab=config["vocab_size"],
        length=config.get("n_positions", 512),
        hidden=config["d_ff"],
        activation=activation,
        form=Form.GATED if gated else Form.PLAIN,
        norm=Norm(epsilon=config["layer_norm_epsilon"]),
        tying=Tying.TIED if config.get("tie_word_embeddings", True) else Tying.UNTIED,
    )
    relative = RelativeBias(
        buckets=config["relative_attention_num_buckets"], distance=config.get("relative_attention_max_distance", 128)
    )
    depth = config.get("num_decoder_layers", config["num_layers"])
    return replace(
        made,
        encoder=replace(made.encoder, relative=relative),
        decoder=replace(made.decoder, relative=relative, repeats=depth),
    )


def _write(architecture: Architecture) -> dict[str, Any]:
    block, relative = architecture.encoder.pattern[0], architecture.encoder.relative
    feedforward = block.feedforward
    gated = feedforward.form is Form.GATED
    if gated and feedforward.activation is Activation.GELU:
        projection = "gated-gelu"
    else:
        projection = ("gated-" if gated else "") + activation_name(feedforward.activation)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": architecture.width,
        "num_layers": architecture.encoder.depth,
        "num_decoder_layers": architecture.decoder.depth,
        "num_heads": block.mixer.heads,
        "d_kv": block.mixer.head_dim,
        "d_ff": feedforward.hidden,
        "vocab_size": architecture.vocab,
        "n_positions": architecture.length,
        "feed_forward_proj": projection,
        "layer_norm_epsilon": block.norm.epsilon,
        "relative_attention_num_buckets": relative.buckets,
        "relative_attention_max_distance": relative.distance,
        "tie_word_embeddings": architecture.head.tying is Tying.TIED,
        "decoder_start_token_id": 0,
        "dropout_rate": block.dropout,
    }


def _tensors(architecture: Architecture) -> Iterator[Tensor]:
    yield Tensor("shared.weight", ("table",), Layout.TABLE)
    for side, stack in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        yield from _side(side, stack)
    if architecture.head.tying is Tying.UNTIED:
        yield Tensor("lm_head.weight", ("head.matrix",), Layout.TABLE)


def _side(side: str, stack: Stack) -> Iterator[Tensor]:
    block, names = f"{side}.pattern.0", ("q", "k", "v", "o")
    gated = stack.pattern[0].feedforward.form is Form.GATED
    products = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    branches = [("SelfAttention", "mixer"), ("EncDecAttention", "cross")][: 2 if side == "decoder" else 1]
    yield Tensor(
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (f"{side}.relative.table",),
        Layout.TABLE,
    )
    for layer in range(stack.depth):
        theirs = f"{side}.block.{layer}.layer"
        for index, (part, ours) in enumerate(branches):
            yield from attention(f"{theirs}.{index}.{part}", f"{block}.{ours}", names, layer=layer, bias=False)
            yield from norm(f"{theirs}.{index}.layer_norm", f"{block}.{ours}_norm", layer=layer, shift=False)
        last = f"{theirs}.{len(branches)}"
        for name, ours in products.items():
            yield from linear(f"{last}.DenseReluDense.{name}", f"{block}.feedforward.{ours}", layer=layer, bias=False)
        yield from norm(f"{last}.layer_norm", f"{block}.feedforward_norm", layer=layer, shift=False)
    yield from norm(f"{side}.final_layer_norm", f"{side}_norm", shift=False)


FORMATS = {
    "t5": Format(
        families=("t5", "t5-1.1"),
        read=_read,
        write=_write,
        tensors=_tensors,
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    )
}
