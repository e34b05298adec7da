"""Qwen 3's folders."""

from typing import Any

from models import zoo
from models.config import Architecture
from models.formats import gated
from models.formats.tensors import Format, Settings
from models.layers import Norm


def _read(config: Settings) -> Architecture:
    config.require(attention_bias=False, use_sliding_window=False, rope_scaling=None)
    norm = Norm(epsilon=config["rms_norm_eps"])
    return zoo.qwen3(norm=norm, qk_norm=norm, **gated.read(config))


def _write(architecture: Architecture) -> dict[str, Any]:
    own = {"rms_norm_eps": architecture.decoder.norm.epsilon, "use_sliding_window": False}
    return gated.write(architecture, "Qwen3ForCausalLM") | own


FORMATS = {
    "qwen3": Format(families=("qwen3",), read=_read, write=_write, tensors=gated.tensors, copies=("lm_head.weight",))
}
