"""Folders of BART, and of Marian, which is the Transformer of Vaswani et al. (2017) in its library."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from models import zoo
from models.config import Architecture, Stack
from models.formats.tensors import Format, Layout, Settings, Tensor, activation_name, attention, linear, norm
from models.positions import Positions

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_FAMILIES = {"bart": zoo.bart, "marian": zoo.transformer}
_CLASSES = {"bart": "BartForConditionalGeneration", "marian": "MarianMTModel"}


def _read(config: Settings, kind: str) -> Architecture:
    config.require(scale_embedding=kind == "marian", tie_word_embeddings=True, share_encoder_decoder_embeddings=True)
    for ours, theirs in (("attention_heads", "num_heads"), ("ffn_dim", "hidden units")):
        if config[f"encoder_{ours}"] != config[f"decoder_{ours}"]:
            raise ValueError(f"config.json: encoder and decoder have different {theirs}, which cannot be imported")
    made = _FAMILIES[kind](
        width=config["d_model"],
        depth=config["encoder_layers"],
        heads=config["encoder_attention_heads"],
        vocab=config["vocab_size"],
        length=config["max_position_embeddings"],
        hidden=config["encoder_ffn_dim"],
        activation=config.activation("activation_function"),
    )
    std = config.get("init_std", 0.02) if kind == "bart" else None
    return replace(made, decoder=replace(made.decoder, repeats=config["decoder_layers"]), std=std)


def _write(architecture: Architecture, kind: str) -> dict[str, Any]:
    block = architecture.encoder.pattern[0]
    both = {"attention_heads": block.mixer.heads, "ffn_dim": block.feedforward.hidden}
    stored = {
        "architectures": [_CLASSES[kind]],
        "d_model": architecture.width,
        "encoder_layers": architecture.encoder.depth,
        "decoder_layers": architecture.decoder.depth,
        "vocab_size": architecture.vocab,
        "max_position_embeddings": architecture.length,
        "activation_function": activation_name(block.feedforward.activation),
        "scale_embedding": kind == "marian",
        "pad_token_id": 1,
        "decoder_start_token_id": 2,
        **dict.fromkeys(("dropout", "attention_dropout"), block.dropout),
    }
    stored |= {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()}
    return stored | ({} if architecture.std is None else {"init_std": architecture.std})


def _tensors(architecture: Architecture) -> Iterator[Tensor]:
    embedding = architecture.embedding
    yield Tensor("model.shared.weight", ("table",), Layout.TABLE)
    for side, stack in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        if embedding.positions is Positions.LEARNED:
            yield Tensor(f"model.{side}.embed_positions.weight", (f"{side}_prelude.positions",), Layout.TABLE)
        if embedding.norm:
            yield from norm(f"model.{side}.layernorm_embedding", f"{side}_prelude.norm", shift=True)
        yield from _side(side, stack)


def _side(side: str, stack: Stack) -> Iterator[Tensor]:
    block = f"{side}.pattern.0"
    branches = [("self_attn", "mixer"), ("encoder_attn", "cross")][: 2 if side == "decoder" else 1]
    for layer in range(stack.depth):
        theirs = f"model.{side}.layers.{layer}"
        for part, ours in branches:
            yield from attention(f"{theirs}.{part}", f"{block}.{ours}", _PROJECTIONS, layer=layer, bias=True)
            yield from norm(f"{theirs}.{part}_layer_norm", f"{block}.{ours}_norm", layer=layer, shift=True)
        yield from linear(f"{theirs}.fc1", f"{block}.feedforward.up", layer=layer, bias=True)
        yield from linear(f"{theirs}.fc2", f"{block}.feedforward.down", layer=layer, bias=True)
        yield from norm(f"{theirs}.final_layer_norm", f"{block}.feedforward_norm", layer=layer, shift=True)


_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")

FORMATS = {
    kind: Format(
        families=("bart",) if kind == "bart" else ("transformer",),
        read=partial(_read, kind=kind),
        write=partial(_write, kind=kind),
        tensors=_tensors,
        copies=_COPIES,
        ignored=("embed_positions.weight",) if kind == "marian" else (),
        zeros=("final_logits_bias",),
    )
    for kind in _FAMILIES
}
