"""Write a small Llama with a tokenizer of bytes as a GGUF file, as llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from model_folder import CHAT

HEADS, HIDDEN, LAYERS = 4, 64, 2
NAMES = {
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


def write_gguf(path: Path, *, tokenizer: bool = True, tied: bool = True, **values: Any) -> LlamaForCausalLM:
    """Write the file, its matrices in blocks of 8 bits, and return the model with the weights as they were.

    Args:
        path: where to write.
        tokenizer: whether the file holds one.
        tied: whether the head is the embeddings.
        **values: more keys, or other values: `architecture`, `parts`.
    """
    tokens = ["<unk>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS, "vocab_size": len(tokens)}
    config = LlamaConfig(**shape, num_attention_heads=HEADS, num_key_value_heads=2, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).eval()
    architecture = values.get("architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    if parts := values.get("parts"):
        writer.add_uint16("split.count", parts)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([2, 3, 3, *[1] * (len(tokens) - 3)])
        writer.add_token_merges(["h e"])
        for add, number in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
            add(number)
        writer.add_pad_token_id(2)
        writer.add_chat_template(CHAT)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not tied:
            _add(writer, name.removesuffix(".weight").removeprefix("model."), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray) -> None:
    ends = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if name in ends:
        short = ends[name]
    else:
        _, layer, inside = name.split(".", 2)
        short = f"blk.{layer}.{NAMES[inside]}"
    if short.endswith(("attn_q", "attn_k")):  # llama.cpp rotates neighbours, transformers the two halves
        heads = HEADS if short.endswith("q") else 2
        weight = weight.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(-1, HIDDEN)
    if weight.ndim == 1:
        writer.add_tensor(f"{short}.weight", weight)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(f"{short}.weight", gguf.quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
