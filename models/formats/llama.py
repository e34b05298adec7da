"""Llama's folders."""

from dataclasses import replace
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats import gated
from models.formats.tensors import Format, Settings
from models.layers import Norm
from models.positions import LlamaScaling
from models.zoo.base import with_blocks, with_mixer


def _read(config: Settings) -> Architecture:
    config.require(mlp_bias=config.get("attention_bias", False), pretraining_tp=1)
    made = zoo.llama(
        norm=Norm(epsilon=config["rms_norm_eps"]), biases=config.get("attention_bias", False), **gated.read(config)
    )
    rotary = replace(made.decoder.pattern[0].mixer.rotary, scaling=_scaling(config.get("rope_scaling", {})))
    return replace(made, decoder=with_blocks(made.decoder, lambda block: with_mixer(block, rotary=rotary)))


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
    scaling = block.mixer.rotary.scaling
    return gated.write(architecture, "LlamaForCausalLM") | {
        "rms_norm_eps": block.norm.epsilon,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.trained,
        },
        "attention_bias": block.mixer.biases,
        "mlp_bias": block.mixer.biases,
    }


FORMATS = {
    "llama": Format(
        families=("llama",),
        read=_read,
        write=_write,
        tensors=gated.tensors,
        copies=("lm_head.weight",),
        ignored=(".rotary_emb.inv_freq",),
    )
}
