"""Folders of OLMo and OLMo 2."""

from functools import partial
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats import gated
from models.formats.tensors import Format, Settings
from models.layers import Norm

_NORMS = {"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "feedforward_norm"}


def _read(config: Settings) -> Architecture:
    config.require(attention_bias=False, clip_qkv=None, rope_scaling=None)
    return zoo.olmo(**gated.read(config))


def _write(architecture: Architecture) -> dict[str, Any]:
    return gated.write(architecture, "OlmoForCausalLM")


def _read_second(config: Settings) -> Architecture:
    config.require(attention_bias=False, rope_scaling=None)
    norm = Norm(epsilon=config["rms_norm_eps"])
    return zoo.olmo2(norm=norm, qk_norm=norm, **gated.read(config))


def _write_second(architecture: Architecture) -> dict[str, Any]:
    return gated.write(architecture, "Olmo2ForCausalLM") | {"rms_norm_eps": architecture.decoder.norm.epsilon}


FORMATS = {
    "olmo": Format(
        families=("olmo",),
        read=_read,
        write=_write,
        tensors=partial(gated.tensors, norms={}),
        copies=("lm_head.weight",),
    ),
    "olmo2": Format(
        families=("olmo2",),
        read=_read_second,
        write=_write_second,
        tensors=partial(gated.tensors, norms=_NORMS),
        copies=("lm_head.weight",),
    ),
}
