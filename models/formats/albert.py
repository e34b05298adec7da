"""Folders of ALBERT: masked language models, or bodies without a head."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats.tensors import Format, Layout, Settings, Tensor, activation_name, attention, linear, norm
from models.layers import Norm, NormForm

_PROJECTIONS = ("query", "key", "value", "dense")


def _read(config: Settings) -> Architecture:
    config.require(position_embedding_type="absolute", num_hidden_groups=1, inner_group_num=1, tie_word_embeddings=True)
    made = zoo.albert(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        vocab=config["vocab_size"],
        length=config["max_position_embeddings"],
        hidden=config["intermediate_size"],
        activation=config.activation("hidden_act"),
        norm=Norm(form=NormForm.LAYER, epsilon=config["layer_norm_eps"]),
        std=config.get("initializer_range", 0.02),
        types=config["type_vocab_size"],
        size=config["embedding_size"],
    )
    return replace(made, head=None) if config.get("architectures", []) == ["AlbertModel"] else made


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.encoder.pattern[0]
    return {
        "architectures": ["AlbertForMaskedLM" if architecture.head else "AlbertModel"],
        "hidden_size": architecture.width,
        "embedding_size": architecture.table_size,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": block.mixer.heads,
        "vocab_size": architecture.vocab,
        "max_position_embeddings": architecture.length,
        "intermediate_size": block.feedforward.hidden,
        "hidden_act": activation_name(block.feedforward.activation),
        "layer_norm_eps": block.norm.epsilon,
        "type_vocab_size": architecture.embedding.types,
        "initializer_range": architecture.std,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), block.dropout),
    }


def _tensors(architecture: Architecture) -> Iterator[Tensor]:
    block, theirs = "stack.pattern.0", "albert.encoder.albert_layer_groups.0.albert_layers.0"
    yield Tensor("albert.embeddings.word_embeddings.weight", ("table",), Layout.TABLE)
    yield Tensor("albert.embeddings.position_embeddings.weight", ("prelude.positions",), Layout.TABLE)
    yield Tensor("albert.embeddings.token_type_embeddings.weight", ("prelude.types",), Layout.TABLE)
    yield from norm("albert.embeddings.LayerNorm", "prelude.norm", shift=True)
    yield from linear("albert.encoder.embedding_hidden_mapping_in", "prelude.widen", bias=True)
    yield from attention(f"{theirs}.attention", f"{block}.mixer", _PROJECTIONS, layer=0, bias=True)
    yield from norm(f"{theirs}.attention.LayerNorm", f"{block}.mixer_norm", layer=0, shift=True)
    yield from linear(f"{theirs}.ffn", f"{block}.feedforward.up", layer=0, bias=True)
    yield from linear(f"{theirs}.ffn_output", f"{block}.feedforward.down", layer=0, bias=True)
    yield from norm(f"{theirs}.full_layer_layer_norm", f"{block}.feedforward_norm", layer=0, shift=True)
    if architecture.head:
        yield Tensor("predictions.bias", ("head.bias",))
        yield from linear("predictions.dense", "head.transform.kernel", bias=True)
        yield from norm("predictions.LayerNorm", "head.transform.norm", shift=True)


FORMATS = {
    "albert": Format(
        families=("albert",),
        read=_read,
        write=_write,
        tensors=_tensors,
        optional="albert.",
        copies=("predictions.decoder.weight", "predictions.decoder.bias"),
        ignored=(".position_ids", "pooler.weight", "pooler.bias", "sop_classifier.classifier.weight",
                 "sop_classifier.classifier.bias"),
    )
}  # fmt: skip
