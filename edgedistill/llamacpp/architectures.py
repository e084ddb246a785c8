"""What each architecture is called on both sides: Hugging Face's names and GGUF's, in one literal table.

A new architecture is one more row of `ARCHITECTURES`; the writer and the importer read nothing else. The names are
those of llama.cpp's own converter and of the GGUF specification; what llama.cpp computes in one way only, whatever the
file says, is in its src/models.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import InvalidInput
from .places import CHECKOUT, EMBEDDING, OUTPUT, Architecture, Key, Part, Pattern, Place
from .plain_config import plain_config

__all__ = [
    "ARCHITECTURES",
    "OUTPUT",
    "Architecture",
    "Key",
    "Part",
    "Place",
    "from_gguf",
    "from_hugging_face",
    "plain_config",
]

# What nearly all of them have.
SHAPE_KEYS = (
    Key("block_count", "num_hidden_layers"),
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
)
DENSE_KEYS = (
    *SHAPE_KEYS,
    Key("attention.head_count_kv", "num_key_value_heads"),
    Key("rope.freq_base", "rope_theta", "float32"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "float32"),
)
HEAD_KEYS = (Key("attention.key_length", "head_dim"), Key("attention.value_length", "head_dim"))
LLAMA_KEYS = (Key("vocab_size", "vocab_size"), Key("rope.dimension_count", "head_dim"))

DENSE = (
    Part(EMBEDDING, "model.embed_tokens", ("vocabulary", "hidden")),
    Part("output_norm", "model.norm", ("hidden",)),
    Part(OUTPUT, "lm_head", ("vocabulary", "hidden")),
)
NORMS = (Part("attn_norm", "input_layernorm", ("hidden",)), Part("ffn_norm", "post_attention_layernorm", ("hidden",)))
ATTENTION = (
    Part("attn_q", "self_attn.q_proj", ("queries", "hidden"), turned_by="num_attention_heads"),
    Part("attn_k", "self_attn.k_proj", ("keys", "hidden"), turned_by="num_key_value_heads"),
    Part("attn_v", "self_attn.v_proj", ("keys", "hidden")),
    Part("attn_output", "self_attn.o_proj", ("hidden", "queries")),
)
HEAD_NORMS = (Part("attn_q_norm", "self_attn.q_norm", ("head",)), Part("attn_k_norm", "self_attn.k_norm", ("head",)))
FEED_FORWARD = (
    Part("ffn_gate", "mlp.gate_proj", ("inner", "hidden")),
    Part("ffn_up", "mlp.up_proj", ("inner", "hidden")),
    Part("ffn_down", "mlp.down_proj", ("hidden", "inner")),
)
ATTENTION_MAY_HAVE_BIAS = tuple(replace(part, bias="may") for part in ATTENTION)
FEED_FORWARD_MAY_HAVE_BIAS = tuple(replace(part, bias="may") for part in FEED_FORWARD)
QKV_HAVE_BIAS = (*(replace(part, bias="must") for part in ATTENTION[:3]), ATTENTION[3])

SILU = ("hidden_act", "silu")
NO_WINDOW = ("use_sliding_window", False)
ROPE_TYPES = frozenset({"default", "linear", "llama3"})

LLAMA = Architecture(
    hugging_face="LlamaForCausalLM",
    model_type="llama",
    gguf="llama",
    keys=(*DENSE_KEYS, *HEAD_KEYS, *LLAMA_KEYS),
    whole=DENSE,
    blocks=(*NORMS, *ATTENTION_MAY_HAVE_BIAS, *FEED_FORWARD_MAY_HAVE_BIAS),
    permuted=True,
    rope_types=ROPE_TYPES,
    fixed=(SILU,),
)

ARCHITECTURES = (
    LLAMA,
    replace(
        LLAMA,
        hugging_face="MistralForCausalLM",
        model_type="mistral",
        blocks=(*NORMS, *ATTENTION, *FEED_FORWARD),
        ignores_window=True,
    ),
    Architecture(
        hugging_face="SmolLM3ForCausalLM",
        model_type="smollm3",
        gguf="smollm3",
        keys=(*DENSE_KEYS, *HEAD_KEYS, *LLAMA_KEYS),
        whole=DENSE,
        blocks=(*NORMS, *ATTENTION, *FEED_FORWARD),
        permuted=True,
        fixed=(SILU, NO_WINDOW, ("no_rope_layer_interval", 4)),
        patterns=(Pattern("no_rope_layers", 1, 0, 4),),
        defaults=(("tie_word_embeddings", True), ("rope_theta", 2000000.0)),
    ),
    Architecture(
        hugging_face="Qwen2ForCausalLM",
        model_type="qwen2",
        gguf="qwen2",
        keys=(*DENSE_KEYS, *HEAD_KEYS),
        whole=DENSE,
        blocks=(*NORMS, *QKV_HAVE_BIAS, *FEED_FORWARD),
        permuted=False,
        fixed=(SILU, NO_WINDOW),
    ),
    Architecture(
        hugging_face="Qwen3ForCausalLM",
        model_type="qwen3",
        gguf="qwen3",
        keys=(*DENSE_KEYS, *HEAD_KEYS),
        whole=DENSE,
        blocks=(*NORMS, *ATTENTION, *HEAD_NORMS, *FEED_FORWARD),
        permuted=False,
        fixed=(SILU, NO_WINDOW, ("attention_bias", False)),
        defaults=(("head_dim", 128),),
    ),
    Architecture(
        hugging_face="Gemma3ForCausalLM",
        model_type="gemma3_text",
        gguf="gemma3",
        keys=(
            *DENSE_KEYS,
            *HEAD_KEYS,
            Key("attention.sliding_window", "sliding_window"),
            Key("rope.freq_base_swa", "rope_local_base_freq", "float32"),
            Key("final_logit_softcapping", "final_logit_softcapping", "float32", optional=True),
        ),
        whole=(DENSE[0], replace(DENSE[1], plus=1.0), DENSE[2]),
        blocks=(
            Part("attn_norm", "input_layernorm", ("hidden",), plus=1.0),
            *ATTENTION,
            *(replace(part, plus=1.0) for part in HEAD_NORMS),
            Part("post_attention_norm", "post_attention_layernorm", ("hidden",), plus=1.0),
            Part("ffn_norm", "pre_feedforward_layernorm", ("hidden",), plus=1.0),
            *FEED_FORWARD,
            Part("post_ffw_norm", "post_feedforward_layernorm", ("hidden",), plus=1.0),
        ),
        permuted=False,
        fixed=(
            ("hidden_activation", "gelu_pytorch_tanh"),
            ("attention_bias", False),
            ("attn_logit_softcapping", None),
            ("use_bidirectional_attention", False),
            ("sliding_window_pattern", 6),
        ),
        same=(("query_pre_attn_scalar", "head_dim"),),
        patterns=(Pattern("layer_types", "sliding_attention", "full_attention", 6),),
        defaults=(
            ("tie_word_embeddings", True),
            ("head_dim", 256),
            ("query_pre_attn_scalar", 256),
            ("rope_theta", 1000000.0),
            ("rope_local_base_freq", 10000.0),
        ),
    ),
    Architecture(
        hugging_face="Phi3ForCausalLM",
        model_type="phi3",
        gguf="phi3",
        keys=(
            *DENSE_KEYS,
            Key("rope.scaling.original_context_length", "original_max_position_embeddings"),
            Key("rope.dimension_count", "rotary_dim"),
            Key("attention.sliding_window", "window"),
            Key("rope.scaling.attn_factor", "rope_attention_factor", "float32", optional=True),
        ),
        whole=DENSE,
        blocks=(
            *NORMS,
            Part("attn_qkv", "self_attn.qkv_proj", ("queries, keys, values", "hidden")),
            ATTENTION[3],
            Part("ffn_up", "mlp.gate_up_proj", ("gate and inner", "hidden")),
            FEED_FORWARD[2],
        ),
        permuted=False,
        rope_types=frozenset({"default", "longrope"}),
        fixed=(SILU, ("attention_bias", False)),
        defaults=(("original_max_position_embeddings", 4096),),
        ignores_window=True,
    ),
    Architecture(
        hugging_face="GraniteForCausalLM",
        model_type="granite",
        gguf="granite",
        keys=(
            *DENSE_KEYS,
            *LLAMA_KEYS,
            Key("attention.scale", "attention_multiplier", "float32"),
            Key("embedding_scale", "embedding_multiplier", "float32"),
            Key("residual_scale", "residual_multiplier", "float32"),
            Key("logit_scale", "logits_scaling", "float32"),
        ),
        whole=DENSE,
        blocks=(*NORMS, *ATTENTION_MAY_HAVE_BIAS, *FEED_FORWARD_MAY_HAVE_BIAS),
        permuted=True,
        rope_types=ROPE_TYPES,
        fixed=(SILU,),
        defaults=(
            ("attention_multiplier", 1.0),
            ("embedding_multiplier", 1.0),
            ("residual_multiplier", 1.0),
            ("logits_scaling", 1.0),
        ),
    ),
    Architecture(
        hugging_face="Olmo2ForCausalLM",
        model_type="olmo2",
        gguf="olmo2",
        keys=DENSE_KEYS,
        whole=DENSE,
        blocks=(
            *ATTENTION,
            Part("attn_q_norm", "self_attn.q_norm", ("queries",)),
            Part("attn_k_norm", "self_attn.k_norm", ("keys",)),
            Part("post_attention_norm", "post_attention_layernorm", ("hidden",)),
            *FEED_FORWARD,
            Part("post_ffw_norm", "post_feedforward_layernorm", ("hidden",)),
        ),
        permuted=False,
        fixed=(SILU, ("attention_bias", False), ("tie_word_embeddings", False)),
    ),
    Architecture(
        hugging_face="Lfm2ForCausalLM",
        model_type="lfm2",
        gguf="lfm2",
        keys=(
            *SHAPE_KEYS,
            Key("attention.head_count_kv", "num_key_value_heads", "by_layer"),
            Key("rope.freq_base", "rope_theta", "float32"),
            Key("attention.layer_norm_rms_epsilon", "norm_eps", "float32"),
            Key("vocab_size", "vocab_size"),
            Key("shortconv.l_cache", "conv_L_cache"),
        ),
        whole=(DENSE[0], Part("token_embd_norm", "model.embedding_norm", ("hidden",)), DENSE[2]),
        blocks=(
            Part("attn_norm", "operator_norm", ("hidden",)),
            *(replace(part, layers="full_attention") for part in ATTENTION[:3]),
            Part("attn_output", "self_attn.out_proj", ("hidden", "queries"), layers="full_attention"),
            Part("attn_q_norm", "self_attn.q_layernorm", ("head",), layers="full_attention"),
            Part("attn_k_norm", "self_attn.k_layernorm", ("head",), layers="full_attention"),
            Part("shortconv.conv", "conv.conv", ("hidden", "taps"), layers="conv", convolution=True),
            Part("shortconv.in_proj", "conv.in_proj", ("three hidden", "hidden"), layers="conv"),
            Part("shortconv.out_proj", "conv.out_proj", ("hidden", "hidden"), layers="conv"),
            Part("ffn_norm", "ffn_norm", ("hidden",)),
            Part("ffn_gate", "feed_forward.w1", ("inner", "hidden")),
            Part("ffn_up", "feed_forward.w3", ("inner", "hidden")),
            Part("ffn_down", "feed_forward.w2", ("hidden", "inner")),
        ),
        permuted=False,
        rope_types=frozenset({"default"}),
        fixed=(("conv_bias", False),),
        defaults=(
            ("tie_word_embeddings", True),
            ("rope_theta", 1000000.0),
            ("block_auto_adjust_ff_dim", True),
            ("block_ffn_dim_multiplier", 1.0),
            ("block_multiple_of", 256),
        ),
        renamed=(("tie_embedding", "tie_word_embeddings"), ("block_ff_dim", "intermediate_size")),
        imported=(("block_auto_adjust_ff_dim", False),),
    ),
)


def from_hugging_face(name: str) -> Architecture:
    """The row of an entry of `architectures` in config.json.

    Raises InvalidInput, with the way out, where it is not in the table.
    """
    for row in ARCHITECTURES:
        if row.hugging_face == name:
            return row
    raise InvalidInput(
        f"no GGUF writer for '{name}'; there is one for {', '.join(row.hugging_face for row in ARCHITECTURES)}",
        CHECKOUT,
    )


def from_gguf(name: str) -> Architecture:
    """The first row of a GGUF's `general.architecture`.

    Raises InvalidInput where it is not in the table.
    """
    for row in ARCHITECTURES:
        if row.gguf == name:
            return row
    known = dict.fromkeys(row.gguf for row in ARCHITECTURES)
    raise InvalidInput(
        f"no importer for GGUF architecture '{name}'; there is one for {', '.join(known)}",
        "Use the model's Hugging Face folder instead.",
    )
