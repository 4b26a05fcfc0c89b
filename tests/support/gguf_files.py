"""How do tests write a GGUF file? As llama.cpp does."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tiny import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, tiny_tokenizer
from transformers import PreTrainedModel

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    architecture: str = "llama",
    blocks: int | None = None,
    parts: int | None = None,
    rename: Callable[[str], str | None] = str,
    more: Callable[[GGUFWriter, PreTrainedModel], None] | None = None,
) -> Path:
    """A Llama as llama.cpp writes it: its own names, and queries and keys permuted for its rotary embedding.

    Args:
        blocks: by the header, if another number than there are.
        parts: of how many files this says it is the first.
        rename: gives the name of a tensor, or None to leave it out.
        more: adds entries and tensors.
    """
    config, tokenizer = model.config, tiny_tokenizer()
    writer = GGUFWriter(path, architecture)
    if parts is not None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", parts)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers if blocks is None else blocks)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__))
    writer.add_token_types([3] * 3 + [1] * (VOCAB_SIZE - 3))  # three control tokens, then ordinary ones
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(str(tokenizer.chat_template))
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        for proj, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if proj in name:
                weight = weight.reshape(heads, 2, -1, config.hidden_size).swapaxes(1, 2).reshape(weight.shape)
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        written = rename(name)
        if written is not None:
            writer.add_tensor(written, np.ascontiguousarray(weight))
    if more is not None:
        more(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
