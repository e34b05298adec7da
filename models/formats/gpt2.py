"""GPT-2's folders."""

from collections.abc import Iterator
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats.tensors import Format, Layout, Settings, Tensor, activation_name, norm
from models.head import Tying
from models.layers import Norm, NormForm


def _read(config: Settings) -> Architecture:
    config.require(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return zoo.gpt2(
        width=config["n_embd"],
        depth=config["n_layer"],
        heads=config["n_head"],
        vocab=config["vocab_size"],
        length=config["n_positions"],
        hidden=config.get("n_inner", 4 * config["n_embd"]),
        activation=config.activation("activation_function"),
        norm=Norm(form=NormForm.LAYER, epsilon=config["layer_norm_epsilon"]),
        tying=Tying.TIED if config.get("tie_word_embeddings", True) else Tying.UNTIED,
        std=config.get("initializer_range", 0.02),
    )


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder.pattern[0]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": architecture.width,
        "n_layer": architecture.depth,
        "n_head": block.mixer.heads,
        "vocab_size": architecture.vocab,
        "n_positions": architecture.length,
        "n_inner": block.feedforward.hidden,
        "activation_function": activation_name(block.feedforward.activation),
        "layer_norm_epsilon": block.norm.epsilon,
        "tie_word_embeddings": architecture.head.tying is Tying.TIED,
        "initializer_range": architecture.std,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), block.dropout),
    }


def _tensors(architecture: Architecture) -> Iterator[Tensor]:
    block, body = "stack.pattern.0", "transformer."
    yield Tensor(f"{body}wte.weight", ("table",), Layout.TABLE)
    yield Tensor(f"{body}wpe.weight", ("prelude.positions",), Layout.TABLE)
    for layer in range(architecture.depth):
        theirs = f"{body}h.{layer}"
        for name, ours in (
            ("attn.c_attn", ("mixer.query", "mixer.key", "mixer.value")),
            ("attn.c_proj", ("mixer.out",)),
            ("mlp.c_fc", ("feedforward.up",)),
            ("mlp.c_proj", ("feedforward.down",)),
        ):
            paths = tuple(f"{block}.{path}" for path in ours)
            yield Tensor(f"{theirs}.{name}.weight", paths, Layout.PRODUCT, layer)
            yield Tensor(f"{theirs}.{name}.bias", tuple(f"{path}_bias" for path in paths), layer=layer)
        yield from norm(f"{theirs}.ln_1", f"{block}.mixer_norm", layer=layer, shift=True)
        yield from norm(f"{theirs}.ln_2", f"{block}.feedforward_norm", layer=layer, shift=True)
    yield from norm(f"{body}ln_f", "norm", shift=True)
    if architecture.head.tying is Tying.UNTIED:
        yield Tensor("lm_head.weight", ("head.matrix",), Layout.TABLE)


FORMATS = {
    "gpt2": Format(
        families=("gpt2",),
        read=_read,
        write=_write,
        tensors=_tensors,
        optional="transformer.",
        copies=("lm_head.weight",),
        ignored=(".attn.bias", ".attn.masked_bias"),
    )
}
