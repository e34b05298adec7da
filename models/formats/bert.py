"""Folders of BERT and RoBERTa: masked language models, or bodies without a head."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats.tensors import Format, Layout, Settings, Tensor, activation_name, attention, linear, norm
from models.layers import Norm, NormForm

_PROJECTIONS = ("self.query", "self.key", "self.value", "output.dense")
_CLASSES = {"bert": "Bert", "roberta": "Roberta"}
_COPIES = tuple(f"{head}.decoder.{part}" for head in ("cls.predictions", "lm_head") for part in ("weight", "bias"))


def _read(config: Settings, family: str) -> Architecture:
    config.require(
        position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, tie_word_embeddings=True
    )
    if family == "roberta":
        config.require(hidden_act="gelu")  # its head has that one whatever the blocks have
    build, offset = (zoo.bert, 0) if family == "bert" else (zoo.roberta, 2)
    made = build(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        vocab=config["vocab_size"],
        length=config["max_position_embeddings"] - offset,
        hidden=config["intermediate_size"],
        activation=config.activation("hidden_act"),
        norm=Norm(form=NormForm.LAYER, epsilon=config["layer_norm_eps"]),
        std=config.get("initializer_range", 0.02),
    )
    headless = config.get("architectures", []) == [_CLASSES[family] + "Model"]
    return replace(
        made,
        embedding=replace(made.embedding, types=config["type_vocab_size"]),
        head=None if headless else made.head,
    )


def _write(architecture: Architecture, family: str) -> dict[str, Any]:
    block, offset = architecture.encoder.pattern[0], architecture.embedding.offset
    return {
        "architectures": [_CLASSES[family] + ("ForMaskedLM" if architecture.head else "Model")],
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": block.mixer.heads,
        "vocab_size": architecture.vocab,
        "max_position_embeddings": architecture.length + offset,
        "intermediate_size": block.feedforward.hidden,
        "hidden_act": activation_name(block.feedforward.activation),
        "layer_norm_eps": block.norm.epsilon,
        "type_vocab_size": architecture.embedding.types,
        "initializer_range": architecture.std,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), block.dropout),
    } | ({"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} if offset else {})


def _tensors(architecture: Architecture, family: str) -> Iterator[Tensor]:
    body, block = f"{family}.", "stack.pattern.0"
    yield Tensor(f"{body}embeddings.word_embeddings.weight", ("table",), Layout.TABLE)
    yield Tensor(f"{body}embeddings.position_embeddings.weight", ("prelude.positions",), Layout.TABLE)
    yield Tensor(f"{body}embeddings.token_type_embeddings.weight", ("prelude.types",), Layout.TABLE)
    yield from norm(f"{body}embeddings.LayerNorm", "prelude.norm", shift=True)
    for layer in range(architecture.depth):
        theirs = f"{body}encoder.layer.{layer}"
        yield from attention(f"{theirs}.attention", f"{block}.mixer", _PROJECTIONS, layer=layer, bias=True)
        yield from norm(f"{theirs}.attention.output.LayerNorm", f"{block}.mixer_norm", layer=layer, shift=True)
        yield from linear(f"{theirs}.intermediate.dense", f"{block}.feedforward.up", layer=layer, bias=True)
        yield from linear(f"{theirs}.output.dense", f"{block}.feedforward.down", layer=layer, bias=True)
        yield from norm(f"{theirs}.output.LayerNorm", f"{block}.feedforward_norm", layer=layer, shift=True)
    if architecture.head is None:
        return
    bias, transform, last = {
        "bert": ("cls.predictions.bias", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        "roberta": ("lm_head.bias", "lm_head.dense", "lm_head.layer_norm"),
    }[family]
    yield Tensor(bias, ("head.bias",))
    yield from linear(transform, "head.transform.kernel", bias=True)
    yield from norm(last, "head.transform.norm", shift=True)


FORMATS = {
    family: Format(
        families=(family,),
        read=partial(_read, family=family),
        write=partial(_write, family=family),
        tensors=partial(_tensors, family=family),
        optional=f"{family}.",
        copies=_COPIES,
        ignored=(".position_ids", ".token_type_ids", "pooler.dense.weight", "pooler.dense.bias"),
    )
    for family in _CLASSES
}
