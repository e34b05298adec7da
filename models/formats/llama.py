"""Llama's folders."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats.tensors import Format, Layout, Settings, Tensor, activation_name, attention, linear, norm
from models.head import Tying
from models.layers import Norm
from models.positions import LlamaScaling, Rotary

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def _read(config: Settings) -> Architecture:
    config.require(mlp_bias=config.get("attention_bias", False), pretraining_tp=1)
    made = zoo.llama(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
        head_dim=config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]),
        vocab=config["vocab_size"],
        length=config["max_position_embeddings"],
        hidden=config["intermediate_size"],
        activation=config.activation("hidden_act"),
        norm=Norm(epsilon=config["rms_norm_eps"]),
        biases=config.get("attention_bias", False),
        tying=Tying.TIED if config.get("tie_word_embeddings", False) else Tying.UNTIED,
        std=config.get("initializer_range", 0.02),
    )
    (block,) = made.decoder.pattern
    rotary = Rotary(base=float(config.get("rope_theta", 10_000.0)), scaling=_scaling(config.get("rope_scaling", {})))
    block = replace(block, mixer=replace(block.mixer, rotary=rotary))
    return replace(made, decoder=replace(made.decoder, pattern=(block,)))


def _scaling(stored: dict[str, Any]) -> LlamaScaling | None:
    kind = stored.get("rope_type", stored.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"config.json: rope_scaling of type {kind!r} cannot be imported, only 'llama3'")
    return LlamaScaling(
        factor=float(stored["factor"]),
        low=float(stored["low_freq_factor"]),
        high=float(stored["high_freq_factor"]),
        trained=stored["original_max_position_embeddings"],
    )


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder.pattern[0]
    mixer, scaling = block.mixer, block.mixer.rotary.scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_dim,
        "vocab_size": architecture.vocab,
        "max_position_embeddings": architecture.length,
        "intermediate_size": block.feedforward.hidden,
        "hidden_act": activation_name(block.feedforward.activation),
        "rms_norm_eps": block.norm.epsilon,
        "rope_theta": mixer.rotary.base,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.trained,
        },
        "attention_bias": mixer.biases,
        "mlp_bias": mixer.biases,
        "tie_word_embeddings": architecture.head.tying is Tying.TIED,
        "initializer_range": architecture.std or 0.02,
    }


def _tensors(architecture: Architecture) -> Iterator[Tensor]:
    block, biases = "stack.pattern.0", architecture.decoder.pattern[0].mixer.biases
    yield Tensor("model.embed_tokens.weight", ("table",), Layout.TABLE)
    for layer in range(architecture.depth):
        theirs = f"model.layers.{layer}"
        yield from attention(f"{theirs}.self_attn", f"{block}.mixer", _PROJECTIONS, layer=layer, bias=biases)
        for part in ("gate", "up", "down"):
            yield from linear(f"{theirs}.mlp.{part}_proj", f"{block}.feedforward.{part}", layer=layer, bias=biases)
        yield from norm(f"{theirs}.input_layernorm", f"{block}.mixer_norm", layer=layer, shift=False)
        yield from norm(f"{theirs}.post_attention_layernorm", f"{block}.feedforward_norm", layer=layer, shift=False)
    yield from norm("model.norm", "norm", shift=False)
    if architecture.head.tying is Tying.UNTIED:
        yield Tensor("lm_head.weight", ("head.matrix",), Layout.TABLE)


FORMATS = {
    "llama": Format(
        families=("llama",),
        read=_read,
        write=_write,
        tensors=_tensors,
        copies=("lm_head.weight",),
        ignored=(".rotary_emb.inv_freq",),
    )
}
