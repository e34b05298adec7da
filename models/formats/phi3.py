"""Phi-3's folders, whose like products are one tensor."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from models import zoo
from models.config import Architecture, Block
from models.formats import gated
from models.formats.tensors import Format, Settings, Tensor, linear
from models.layers import Norm


def _read(config: Settings) -> Architecture:
    config.require(rope_scaling=None, partial_rotary_factor=1.0)
    settings = gated.read(config) | dict(window=config.get("sliding_window", None))
    return zoo.phi3(norm=Norm(epsilon=config["rms_norm_eps"]), **settings)


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder.pattern[0]
    own = {
        "rms_norm_eps": block.norm.epsilon,
        "sliding_window": block.mixer.window,
        "original_max_position_embeddings": architecture.length,
        "pad_token_id": None,
    }
    return gated.write(architecture, "Phi3ForCausalLM") | own


def _fused(theirs: str, ours: str, block: Block, layer: int) -> Iterator[Tensor]:
    for name, params in {
        "self_attn.qkv_proj": ("mixer.query", "mixer.key", "mixer.value"),
        "self_attn.o_proj": ("mixer.out",),
        "mlp.gate_up_proj": ("feedforward.gate", "feedforward.up"),
        "mlp.down_proj": ("feedforward.down",),
    }.items():
        yield from linear(f"{theirs}.{name}", *(f"{ours}.{param}" for param in params), layer=layer, bias=False)


FORMATS = {
    "phi3": Format(
        families=("phi3",),
        read=_read,
        write=_write,
        tensors=partial(gated.tensors, parts=_fused),
        copies=("lm_head.weight",),
    )
}
