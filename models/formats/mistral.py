"""Mistral's folders."""

from typing import Any

from models import zoo
from models.config import Architecture
from models.formats import gated
from models.formats.tensors import Format, Settings
from models.layers import Norm


def _read(config: Settings) -> Architecture:
    # Absent is their default, null is no window.
    window = config.values.get("sliding_window", 4_096)
    return zoo.mistral(norm=Norm(epsilon=config["rms_norm_eps"]), window=window, **gated.read(config))


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder.pattern[0]
    own = {"rms_norm_eps": block.norm.epsilon, "sliding_window": block.mixer.window}
    return gated.write(architecture, "MistralForCausalLM") | own


FORMATS = {
    "mistral": Format(
        families=("mistral",), read=_read, write=_write, tensors=gated.tensors, copies=("lm_head.weight",)
    )
}
