"""Folders of Gemma 2 and 3, of text alone."""

from functools import partial
from typing import Any

from models import zoo
from models.config import Architecture
from models.formats import gated
from models.formats.tensors import Format, Settings
from models.layers import Norm
from models.positions import Rotary

_NORMS = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_closing_norm",
    "pre_feedforward_layernorm": "feedforward_norm",
    "post_feedforward_layernorm": "feedforward_closing_norm",
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _read(config: Settings) -> Architecture:
    return zoo.gemma2(period=_period(config, 2), **_settings(config))


def _read_third(config: Settings) -> Architecture:
    config.require(use_bidirectional_attention=False)
    settings = _settings(config) | dict(
        rotary_base=float(config.get("rope_local_base_freq", 10_000.0)),
        rotary_global=Rotary(base=float(config.get("rope_theta", 1e6)), scaling=gated.scaling(config)),
        qk_norm=_norm(config),
    )
    return zoo.gemma3(period=_period(config, config.get("sliding_window_pattern", 6)), **settings)


def _norm(config: Settings) -> Norm:
    return Norm(epsilon=config["rms_norm_eps"], offset=1.0)


def _settings(config: Settings) -> dict[str, Any]:
    config.require(attention_bias=False)
    settings = gated.read(config, tied=True, activation="hidden_activation")
    scalar = config.get("query_pre_attn_scalar", settings["head_dim"])
    return settings | dict(
        norm=_norm(config),
        window=config["sliding_window"],
        score_cap=config.values.get("attn_logit_softcapping"),
        logit_cap=config.values.get("final_logit_softcapping"),
        score_scale=None if scalar == settings["head_dim"] else scalar**-0.5,
    )


def _period(config: Settings, usual: int) -> int:
    """How many blocks make a turn, the last of them global."""
    depth = config["num_hidden_layers"]
    stored = config.get("layer_types", None)
    period = usual if stored is None else [*stored, _GLOBAL].index(_GLOBAL) + 1
    if stored not in (None, turns := [_LOCAL if (layer + 1) % period else _GLOBAL for layer in range(depth)]):
        raise ValueError(f"config.json: layer_types must be turns of like length, such as {turns}, not {stored}")
    return period


def _write(architecture: Architecture, name: str) -> dict[str, Any]:
    stack = architecture.decoder
    mixer = stack.pattern[0].mixer
    kinds = [_LOCAL if block.mixer.window else _GLOBAL for block in stack.pattern]
    return gated.write(architecture, name, activation="hidden_activation") | {
        "rms_norm_eps": stack.norm.epsilon,
        "sliding_window": mixer.window,
        "layer_types": [kinds[layer % stack.period] for layer in range(stack.depth)],
        "query_pre_attn_scalar": mixer.head_dim if mixer.scale is None else round(mixer.scale**-2, 6),
        "attn_logit_softcapping": mixer.score_cap,
        "final_logit_softcapping": architecture.head.logit_cap,
    }


def _write_third(architecture: Architecture) -> dict[str, Any]:
    local, last = (architecture.decoder.pattern[index].mixer.rotary for index in (0, -1))
    own = {
        "rope_theta": last.base,
        "rope_local_base_freq": local.base,
        "rope_scaling": gated.said(last.scaling),
    }
    return _write(architecture, "Gemma3ForCausalLM") | own


_COMMON = dict(tensors=partial(gated.tensors, norms=_NORMS), copies=("lm_head.weight",))

FORMATS = {
    "gemma2": Format(families=("gemma2",), read=_read, write=partial(_write, name="Gemma2ForCausalLM"), **_COMMON),
    "gemma3_text": Format(families=("gemma3",), read=_read_third, write=_write_third, **_COMMON),
}
