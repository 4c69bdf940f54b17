"""What a pair costs at the least: tokens that are counted, and the arithmetic that no implementation can leave out.

A product of [n, d] and [d, m] is 2 n d m FLOPs; backward is twice forward. The prompt is counted once, the output head
at response positions alone, attention over what a token may see. Norms, activations and the optimizer are left out.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.shapes import PROFILES, SHAPES, texts_of_pair

H100 = 989e12  # FLOPs a second, dense bf16

Lengths = NDArray[Any]
Text = tuple[int, ...]


def tokens_of_pair(profile: str, task: str, num: int) -> float:
    """2 P + C + R (SFT: P + C), averaged over the first `num` pairs; equal for arms that compute a prompt twice."""
    prompt, chosen, rejected = PROFILES[profile](num).T
    tokens = prompt + chosen if task == "sft" else 2 * prompt + chosen + rejected
    return float(tokens.mean())


def flops_of_pair(shape: str, profile: str, task: str, num: int) -> float:
    """FLOPs of a pair, on average over the first `num`: of a training step, or of the reference's forward pass.

    A prompt or response that several pairs have is counted once.
    """
    prompts, responses = dict[Text, int](), dict[Text, tuple[int, int]]()
    for index, (prompt, *sizes) in enumerate(PROFILES[profile](num).tolist()):
        name, *texts = texts_of_pair(profile, index)
        prompts[name] = prompt
        responses |= {
            text: (prompt, size) for text, size in zip(texts[: 1 if task == "sft" else 2], sizes, strict=False)
        }
    read = sum(size for _, size in responses.values())
    tokens = sum(prompts.values()) + read
    seen = sum(size * (size + 1) / 2 for size in prompts.values())
    seen += sum(size * (prompt + (size + 1) / 2) for prompt, size in responses.values())
    forward = _forward(shape, *(np.array(each) / num for each in (tokens, 0 if task == "reward" else read, seen)))
    return forward * (1 if task == "reference" else 3)


def padded_flops_of_pair(shape: str, profile: str, num: int, responses_only: bool) -> float:
    """FLOPs of DPO's step on a pair as two rows, prompt and all, of the longer one's length: TRL's, a pair at a time.

    responses_only: whether the output head reads responses alone, as in the arm that is patched.
    """
    prompt, chosen, rejected = PROFILES[profile](num).T
    row = prompt + np.maximum(chosen, rejected)
    read = chosen + rejected if responses_only else 2 * row
    return _forward(shape, 2 * row, read, row * (row + 1)) * 3


def _forward(shape: str, tokens: Lengths, read: Lengths, seen: Lengths) -> float:
    """FLOPs of a forward pass, on average: of each pair the tokens, those that the head reads, and keys seen by all."""
    kind, sizes = SHAPES[shape]
    width, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    keys = sizes.get("num_key_value_heads", sizes["num_attention_heads"]) / sizes["num_attention_heads"]
    block = (2 + 2 * keys) * width**2 + (2 if kind == "gpt_neox" else 3) * width * inner
    flops = 2 * layers * block * tokens + 2 * width * sizes["vocab_size"] * read + 4 * layers * width * seen
    return float(flops.mean())


def with_work(runs: pd.DataFrame, num: int) -> pd.DataFrame:
    """The runs with useful tokens a second, useful FLOPs over those of the product measured before each (`mfu`: over an
    H100's nominal ones, on a GPU), and how much arithmetic an arm does for what the least would do, at one pair a
    micro-batch on a CPU."""
    flops = [flops_of_pair(row.shape, row.profile, row.task, num) for row in runs.itertuples()]
    tokens = [tokens_of_pair(row.profile, row.task, num) for row in runs.itertuples()]
    share = runs["pairs_per_s"] * flops / (1e9 * runs["gemm_gflops"])
    mfu = (runs["pairs_per_s"] * flops / H100).where(runs["device"] == "cuda")
    padded = [_over_the_least(row, num) for row in runs.itertuples()]
    speeds = {"useful_tokens_per_s": runs["pairs_per_s"] * tokens, "of_product_speed": share, "mfu": mfu}
    return runs.assign(**speeds, arithmetic=padded)


def _over_the_least(row: Any, num: int) -> float:
    """An arm's FLOPs over the least, where they are known: DPO of TRL on a CPU, tuned, patched or not."""
    if row.task != "dpo" or row.device != "cpu" or row.arm not in ("trl-tuned", "trl-patched"):
        return float("nan")
    padded = padded_flops_of_pair(row.shape, row.profile, num, responses_only=row.arm == "trl-patched")
    return padded / flops_of_pair(row.shape, row.profile, row.task, num)
