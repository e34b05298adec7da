"""Folders of ELECTRA: discriminators, and generators, which are masked language models."""

from collections.abc import Iterator
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats.tensors import Format, Layout, Settings, Tensor, activation_name, attention, linear, norm
from models.layers import Norm, NormForm

_PROJECTIONS = ("self.query", "self.key", "self.value", "output.dense")
_CLASSES = {"electra": "ElectraForPreTraining", "electra-generator": "ElectraForMaskedLM"}


def _read(config: Settings) -> Architecture:
    config.require(
        position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, tie_word_embeddings=True
    )
    kind = next(iter(config.get("architectures", [])), _CLASSES["electra"])
    family = next((family for family, name in _CLASSES.items() if name == kind), None)
    if family is None:
        raise ValueError(f"config.json: architectures '{kind}' is not one of {', '.join(_CLASSES.values())}")
    if family == "electra-generator":
        config.require(hidden_act="gelu")  # its head has that one whatever the blocks have
    return zoo.make(
        family,
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


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.encoder.pattern[0]
    return {
        "architectures": [_CLASSES["electra-generator" if architecture.head else "electra"]],
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
    block = "stack.pattern.0"
    yield Tensor("electra.embeddings.word_embeddings.weight", ("table",), Layout.TABLE)
    yield Tensor("electra.embeddings.position_embeddings.weight", ("prelude.positions",), Layout.TABLE)
    yield Tensor("electra.embeddings.token_type_embeddings.weight", ("prelude.types",), Layout.TABLE)
    yield from norm("electra.embeddings.LayerNorm", "prelude.norm", shift=True)
    if architecture.embedding.size:
        yield from linear("electra.embeddings_project", "prelude.widen", bias=True)
    for layer in range(architecture.depth):
        theirs = f"electra.encoder.layer.{layer}"
        yield from attention(f"{theirs}.attention", f"{block}.mixer", _PROJECTIONS, layer=layer, bias=True)
        yield from norm(f"{theirs}.attention.output.LayerNorm", f"{block}.mixer_norm", layer=layer, shift=True)
        yield from linear(f"{theirs}.intermediate.dense", f"{block}.feedforward.up", layer=layer, bias=True)
        yield from linear(f"{theirs}.output.dense", f"{block}.feedforward.down", layer=layer, bias=True)
        yield from norm(f"{theirs}.output.LayerNorm", f"{block}.feedforward_norm", layer=layer, shift=True)
    if architecture.head:
        yield from linear("generator_predictions.dense", "head.transform.kernel", bias=True)
        yield from norm("generator_predictions.LayerNorm", "head.transform.norm", shift=True)
        yield Tensor("generator_lm_head.bias", ("head.bias",))
    else:
        yield from linear("discriminator_predictions.dense", "classifier.transform.kernel", bias=True)
        yield from linear("discriminator_predictions.dense_prediction", "classifier.kernel", bias=True)


FORMATS = {
    "electra": Format(
        families=tuple(_CLASSES),
        read=_read,
        write=_write,
        tensors=_tensors,
        optional="electra.",
        copies=("generator_lm_head.weight",),
        ignored=(".position_ids",),
    )
}
