"""Tiny decoders of transformers, each with the settings that tell it from the others."""

VOCAB = 40
_GATED = dict(
    hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
    vocab_size=VOCAB, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_GEMMA = _GATED | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=10)
_NEOX = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, vocab_size=VOCAB,
    max_position_embeddings=16, rotary_emb_base=500,
)  # fmt: skip
_BLOOM = dict(hidden_size=24, n_layer=3, n_head=6, vocab_size=VOCAB, layer_norm_epsilon=1e-4)

# By name of the case: kind of model, class, settings.
DECODERS = {
    "mistral": ("mistral", "MistralForCausalLM", _GATED | dict(sliding_window=5, head_dim=8, rope_theta=500.0)),
    "mistral-whole": ("mistral", "MistralForCausalLM", _GATED | dict(sliding_window=None, tie_word_embeddings=True)),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", _GATED | dict(head_dim=8, rms_norm_eps=1e-3)),
    "qwen3-tied": ("qwen3", "Qwen3ForCausalLM", _GATED | dict(head_dim=6, tie_word_embeddings=True)),
    "olmo": ("olmo", "OlmoForCausalLM", _GATED),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", _GATED),
    "olmo2-multi-head": ("olmo2", "Olmo2ForCausalLM", _GATED | dict(num_key_value_heads=4, rms_norm_eps=1e-3)),
    "gpt-neox": ("gpt_neox", "GPTNeoXForCausalLM", _NEOX),
    "gpt-neox-series": (
        "gpt_neox", "GPTNeoXForCausalLM",
        _NEOX | dict(use_parallel_residual=False, rotary_pct=1.0, tie_word_embeddings=True, layer_norm_eps=1e-3),
    ),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", _GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma2-uncapped": (
        "gemma2", "Gemma2ForCausalLM", _GEMMA | dict(attn_logit_softcapping=None, query_pre_attn_scalar=8)
    ),
    "gemma3": (
        "gemma3_text", "Gemma3ForCausalLM",
        _GEMMA | dict(num_hidden_layers=5, sliding_window_pattern=3, rope_theta=500.0, rope_local_base_freq=50.0,
                      rope_scaling={"rope_type": "linear", "factor": 3.0}),
    ),
    "gemma3-local": ("gemma3_text", "Gemma3ForCausalLM", _GEMMA | dict(num_key_value_heads=1)),
    "phi3": ("phi3", "Phi3ForCausalLM", _GATED | dict(sliding_window=6)),
    "phi3-whole": ("phi3", "Phi3ForCausalLM", _GATED | dict(tie_word_embeddings=True, rope_theta=50.0)),
    "mixtral": ("mixtral", "MixtralForCausalLM", _GATED | dict(num_local_experts=5, sliding_window=None)),
    "mixtral-balance": (
        "mixtral", "MixtralForCausalLM",
        _GATED | dict(num_local_experts=4, num_experts_per_tok=3, num_hidden_layers=1, output_router_logits=True,
                      router_aux_loss_coef=0.5, sliding_window=None),
    ),
    "bloom": ("bloom", "BloomForCausalLM", _BLOOM),
    "bloom-eight": ("bloom", "BloomForCausalLM", _BLOOM | dict(n_head=8, n_layer=2)),
}  # fmt: skip

# Second settings of an architecture.
THOROUGH = (
    "mistral-whole",
    "qwen3-tied",
    "olmo2-multi-head",
    "gpt-neox-series",
    "gemma2-uncapped",
    "gemma3-local",
    "mixtral-balance",
    "phi3-whole",
    "bloom-eight",
)
