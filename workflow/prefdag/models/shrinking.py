"""Small copies of models, which prove how an architecture is computed within a second.

A copy has the same kinds of layers, few of each, narrow, with a small vocabulary, short windows and random weights
large enough to show mistakes.
"""

import copy
import re

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prefdag.data.token_store import Comparison
from prefdag.errors import UserError

VOCABULARY = 64
LARGEST = 300_000_000  # parameters
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_heads": 8,  # of Mamba 2: twice hidden_size over head_dim
    "n_mamba_heads": 8,
    "mamba_headdim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_ssm": 128,
    "rotary_dim": 8,
}
NARROW = re.compile(r"window|(?<!mamba_)chunk_size")  # attention windows, which two short comparisons must reach over


def build_shrunken(config: PretrainedConfig, where: str) -> PreTrainedModel:
    """Build a small copy of a model with random weights large enough to show mistakes.

    Raises:
        UserError: if transformers cannot build it as a causal language model.
    """
    failure = ""
    for narrow in (True, False):
        try:
            small = shrunken(config, narrow)
            _check_size(small)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation="eager")
                for parameter in model.parameters():
                    parameter.data += 0.1 * torch.randn_like(parameter)
            model = model.eval()
            with torch.no_grad():
                single_logprobs(model, probes(VOCABULARY)[0])
            return model
        except Exception as error:  # each architecture refuses sizes in its own way
            failure = first_line(error)
    raise UserError(f"{where}: cannot build {config.model_type!r} as a causal language model ({failure})")


def _check_size(config: PretrainedConfig) -> None:
    """Raise `ValueError` for a model that is too large to prove on a laptop."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise ValueError(f"a copy with {config.get_text_config().num_hidden_layers} layers has {size:,} parameters")


def shrunken(config: PretrainedConfig, narrow: bool) -> PretrainedConfig:
    """Return a small copy of a configuration, with the same kinds of layers.

    Args:
        config: the model's configuration.
        narrow: whether to shrink widths too, and not only depth, vocabulary and windows.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    layers = text.num_hidden_layers
    kinds = list(getattr(text, "layer_types", None) or [])
    depth = min(layers, max([2, *(kinds.index(kind) + 1 for kind in kinds)]))
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, key, value[:depth])
        elif isinstance(value, int) and not isinstance(value, bool) and NARROW.search(key) and "layers" not in key:
            setattr(text, key, min(value, 4))
    if getattr(text, "attention_types", None):  # GPT-Neo: [[kinds, repeats], ...]
        text.attention_types = [[text.attention_types[0][0], 1]]
        depth = len(text.attention_types[0][0])
        text.attention_layers = text.attention_layers[:depth]
    text.num_hidden_layers, text.vocab_size = depth, VOCABULARY
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, key, 0 if getattr(text, key, None) is not None else None)
    if narrow:
        heads = getattr(text, "num_attention_heads", None)
        for key, size in SIZES.items():
            value = getattr(text, key, None)
            if isinstance(value, int) and key not in _computed(text):
                setattr(text, key, min(value, size))
        if getattr(text, "head_dim", 0) is None:
            text.head_dim = SIZES["head_dim"]
        for key in ("num_key_value_heads", "num_kv_heads"):
            groups = getattr(text, key, None)
            if isinstance(groups, int):
                setattr(text, key, text.num_attention_heads if groups == heads else 1 if groups == 1 else 2)
    return small


def _computed(config: PretrainedConfig) -> set[str]:
    """Return the attributes that a configuration computes from others."""
    return {name for name in dir(type(config)) if isinstance(getattr(type(config), name, None), property)}


def probes(vocabulary: int) -> list[Comparison]:
    """Return three comparisons of two responses, of lengths that differ; two of them share a packed row."""
    tokens = torch.randint(3, vocabulary, (60,), generator=torch.Generator().manual_seed(0)).to(torch.int32).numpy()
    sizes, at, result = ((7, 5, 9), (3, 4, 6), (2, 1, 8)), 0, []
    for prompt, first, second in sizes:
        ends = (at + prompt, at + prompt + first, at + prompt + first + second)
        parts = (tokens[at : ends[0]], tokens[ends[0] : ends[1]], tokens[ends[1] : ends[2]])
        result.append(Comparison(parts[0], parts[1:]))
        at = ends[2]
    return result


def single_logprobs(model: PreTrainedModel, comparison: Comparison) -> Tensor:
    """Return log-probs of a comparison's response tokens, from one forward pass for each response."""
    device, parts = next(model.parameters()).device, []
    for response in comparison.responses:
        ids = torch.tensor([[*comparison.prompt.tolist(), *response.tolist()]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(comparison.prompt) - 1 : -1].float()
        target = ids[0, len(comparison.prompt) :]
        parts.append(logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1))
    return torch.cat(parts)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
