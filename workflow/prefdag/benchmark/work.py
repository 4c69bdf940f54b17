"""What a pair costs at the least: tokens that are counted, and the arithmetic that no implementation can leave out.

A product of [n, d] and [d, m] is 2 n d m FLOPs; backward is twice forward. The prompt is counted once, the output head
at response positions alone, attention over what a token may see. Norms, activations and the optimizer are left out.
"""

import pandas as pd

from prefdag.benchmark.shapes import PROFILES, SHAPES


def tokens_of_pair(profile: str, task: str, num: int) -> float:
    """2 P + C + R, of SFT P + C, on average over the first `num` pairs: the same whoever computes a prompt twice."""
    prompt, chosen, rejected = PROFILES[profile](num).T
    tokens = prompt + chosen if task == "sft" else 2 * prompt + chosen + rejected
    return float(tokens.mean())


def flops_of_pair(shape: str, profile: str, task: str, num: int) -> float:
    """FLOPs of a pair, on average over the first `num`: of a training step, or of the reference's forward pass."""
    kind, sizes = SHAPES[shape]
    width, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    keys = sizes.get("num_key_value_heads", sizes["num_attention_heads"]) / sizes["num_attention_heads"]
    block = (2 + 2 * keys) * width**2 + (2 if kind == "gpt_neox" else 3) * width * inner
    prompt, chosen, rejected = PROFILES[profile](num).T
    responses = [chosen] if task == "sft" else [chosen, rejected]
    seen = prompt * (prompt + 1) / 2 + sum(each * (prompt + (each + 1) / 2) for each in responses)
    read = 0 * prompt if task == "reward" else sum(responses)
    forward = 2 * layers * block * (prompt + sum(responses)) + 2 * width * sizes["vocab_size"] * read
    forward = forward + 4 * layers * width * seen
    return float(forward.mean()) * (1 if task == "reference" else 3)


def with_work(runs: pd.DataFrame, num: int) -> pd.DataFrame:
    """The runs with useful tokens a second, and useful FLOPs over those of the product measured before each."""
    flops = [flops_of_pair(row.shape, row.profile, row.task, num) for row in runs.itertuples()]
    tokens = [tokens_of_pair(row.profile, row.task, num) for row in runs.itertuples()]
    share = runs["pairs_per_s"] * flops / (1e9 * runs["gemm_gflops"])
    return runs.assign(useful_tokens_per_s=runs["pairs_per_s"] * tokens, of_product_speed=share)
