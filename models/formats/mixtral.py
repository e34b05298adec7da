"""Mixtral's folders, with three tensors for each expert of a layer."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from models import zoo
from models.config import Architecture, Block
from models.formats import gated
from models.formats.tensors import Format, Layout, Settings, Tensor
from models.layers import Norm

_PARTS = {"w1": "gate", "w2": "down", "w3": "up"}


def _read(config: Settings) -> Architecture:
    config.require(sliding_window=None, router_jitter_noise=0.0)
    return zoo.mixtral(
        norm=Norm(epsilon=config["rms_norm_eps"]),
        experts=config["num_local_experts"],
        chosen=config["num_experts_per_tok"],
        balance=config.get("router_aux_loss_coef", 0.001),
        **gated.read(config),
    )


def _write(architecture: Architecture) -> dict[str, Any]:
    block = architecture.decoder.pattern[0]
    return gated.write(architecture, "MixtralForCausalLM") | {
        "rms_norm_eps": block.norm.epsilon,
        "num_local_experts": block.feedforward.count,
        "num_experts_per_tok": block.feedforward.chosen,
        "router_aux_loss_coef": block.feedforward.balance,
        "sliding_window": None,
    }


def _parts(theirs: str, ours: str, block: Block, layer: int) -> Iterator[Tensor]:
    yield from gated.attend(theirs, ours, block, layer)
    theirs, ours = f"{theirs}.block_sparse_moe", f"{ours}.feedforward"
    yield Tensor(f"{theirs}.gate.weight", (f"{ours}.router",), Layout.LINEAR, layer)
    for expert in range(block.feedforward.count):
        for name, param in _PARTS.items():
            place = (layer, expert)
            yield Tensor(f"{theirs}.experts.{expert}.{name}.weight", (f"{ours}.{param}",), Layout.LINEAR, place)


FORMATS = {
    "mixtral": Format(
        families=("mixtral",),
        read=_read,
        write=_write,
        tensors=partial(gated.tensors, parts=_parts),
        copies=("lm_head.weight",),
    )
}
