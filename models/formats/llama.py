"""Llama's folders."""

from dataclasses import replace
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats import gated
from models.formats.tensors import Format, Settings
from models.layers import Norm
from models.zoo.base import with_blocks, with_mixer


def _read(config: Settings) -> Architecture:
    config.require(mlp_bias=config.get("attention_bias", False), pretraining_tp=1)
    made = zoo.llama(
        norm=Norm(epsilon=config["rms_norm_eps"]), biases=config.get("attention_bias", False), **gated.read(config)
    )
    rotary = replace(made.decoder.pattern[0].mixer.rotary, scaling=gated.scaling(config))
    return replace(made, decoder=with_blocks(made.decoder, lambda block: with_mixer(block, rotary=rotary)))


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder.pattern[0]
    return gated.write(architecture, "LlamaForCausalLM") | {
        "rms_norm_eps": block.norm.epsilon,
        "rope_scaling": gated.said(block.mixer.rotary.scaling),
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
