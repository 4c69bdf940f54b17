"""Sampling against transformers' `generate` and an earlier form of prefdag: python -m benchmarks.sampling MODEL

MODEL is a folder with config.json and weights, or `llama` for a random one of 8 layers of 512. Prompts of unequal
lengths are cut from text that the model writes. Each round runs every arm once, in turn, one thread, CPU time; greedy
ids must be those of `generate`, all ids those of the former code. Prints a table in Markdown.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from prefdag.config.model import Architectural
from prefdag.config.sections.sampling import Sampling
from prefdag.models.generation import sample, sample_tokens
from prefdag.models.loading import build, load_policy, set_up
from prefdag.seeds import generator

Ids = list[list[int]]


def ours(model: PreTrainedModel, prompts: Ids, settings: Sampling, eos: int) -> Ids:
    samples = sorted(
        sample(model, prompts, range(len(prompts)), settings, eos), key=lambda one: (one.prompt, one.sample)
    )
    return [one.ids for one in samples]


def former(model: PreTrainedModel, prompts: Ids, settings: Sampling, eos: int) -> Ids:
    """As before: every sample encodes its prompt, the cache grows by concatenation, rows leave when half have ended."""
    model.set_attn_implementation("sdpa")
    wanted = [(index, number) for index in range(len(prompts)) for number in range(settings.num_samples)]
    wanted.sort(key=lambda pair: (len(prompts[pair[0]]), pair))
    samples: dict[tuple[int, int], list[int]] = {}
    for begin in range(0, len(wanted), settings.batch_size):
        batch = wanted[begin : begin + settings.batch_size]
        noise = np.stack(
            [generator(settings.seed, "sampling", *pair).random(settings.max_new_tokens) for pair in batch]
        )
        samples |= zip(batch, _former_batch(model, [prompts[index] for index, _ in batch], noise, settings, eos))
    return [samples[pair] for pair in sorted(samples)]


@torch.no_grad()
def _former_batch(model: PreTrainedModel, prompts: Ids, noise: np.ndarray, settings: Sampling, eos: int) -> Ids:
    tokens, mask = padded(prompts)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, rows = DynamicCache(config=model.config), np.arange(len(prompts))
    ids: Ids = [[] for _ in prompts]
    ended = np.zeros(len(prompts), dtype=bool)
    for step in range(settings.max_new_tokens):
        options = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "logits_to_keep": 1}
        logits = model(input_ids=tokens, **options).logits[:, -1].float()
        chosen = sample_tokens(logits, torch.from_numpy(noise[rows, step]), settings.temperature, settings.top_p)
        logprob = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        for row, token, _ in zip(rows, chosen.tolist(), logprob.tolist(), strict=True):
            if not ended[row]:
                ids[row].append(token)
                ended[row] = token == eos
        if ended.all():
            break
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        live = np.flatnonzero(~ended[rows])
        if len(live) <= len(rows) // 2:
            keep = torch.from_numpy(live)
            cache.batch_select_indices(keep)
            tokens, positions, mask, rows = tokens[keep], positions[keep], mask[keep], rows[live]
    return ids


def generate(model: PreTrainedModel, prompts: Ids, settings: Sampling, eos: int) -> Ids:
    """transformers' own, prompts sorted by length and padded to their batch's longest."""
    model.set_attn_implementation("sdpa")
    wanted = [(index, number) for index in range(len(prompts)) for number in range(settings.num_samples)]
    wanted.sort(key=lambda pair: (len(prompts[pair[0]]), pair))
    written_by: Any = model.generate  # transformers' own annotations take it for a tensor
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "eos_token_id": eos, "pad_token_id": eos}
    drawing = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": settings.top_p}
    options |= drawing if settings.temperature else {"do_sample": False}
    samples: dict[tuple[int, int], list[int]] = {}
    for begin in range(0, len(wanted), settings.batch_size):
        batch = wanted[begin : begin + settings.batch_size]
        tokens, mask = padded([prompts[index] for index, _ in batch])
        written = written_by(tokens, attention_mask=mask, **options)[:, tokens.shape[1] :].tolist()
        samples |= zip(batch, [row[: row.index(eos) + 1] if eos in row else row for row in written])
    return [samples[pair] for pair in sorted(samples)]


def padded(prompts: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    rows = [[0] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(rows), torch.tensor(mask)


def cut_prompts(model: PreTrainedModel, num: int, longest: int, bos: int) -> Ids:
    """Beginnings of what the model writes, of 3 to `longest` tokens."""
    settings = Sampling(num_samples=num, max_new_tokens=longest, batch_size=num)
    written = [[bos, *one.ids] for one in sample(model, [[bos]], [0], settings, eos=-1)]
    lengths = generator(0, "benchmark", "prompts").integers(3, longest + 1, num)
    return [ids[: int(length)] for ids, length in zip(written, lengths, strict=True)]


ARMS: dict[str, Callable[[PreTrainedModel, Ids, Sampling, int], Ids]] = {
    "generate": generate,
    "former": former,
    "prefdag": ours,
}


def measured(model: PreTrainedModel, prompts: Ids, settings: Sampling, eos: int, rounds: int) -> str:
    """One row of the table: CPU seconds of every arm, and how many times as long as ours the others take."""
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    ids: dict[str, Ids] = {}
    for _ in range(rounds):
        for name, arm in ARMS.items():
            began = time.process_time()
            ids[name] = arm(model, prompts, settings, eos)
            seconds[name].append(time.process_time() - began)
    assert ids["prefdag"] == ids["former"], "not what the former code drew"
    assert settings.temperature or ids["prefdag"] == ids["generate"], "not what generate writes"
    ratios = [
        _range([other / ours for other, ours in zip(seconds[name], seconds["prefdag"], strict=True)])
        for name in ("generate", "former")
    ]
    about = f"{len(prompts)} x {settings.num_samples} x {settings.max_new_tokens}, batches of {settings.batch_size}"
    kind = f"temperature {settings.temperature:g}" if settings.temperature else "greedy"
    return f"| {about} | {kind} | {np.median(seconds['prefdag']):.1f} | {ratios[0]} | {ratios[1]} |"


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with config.json and model.safetensors, or `llama`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--longest", type=int, default=64, help="tokens of the longest prompt")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    arguments = parser.parse_args()
    device = set_up(1)
    if arguments.model == "llama":
        shape = Architectural(architecture="llama", hidden_size=512, layers=8, heads=8, context=2048)
        model = build(shape, 4000, 0, 1, seed=0)
    else:
        model = load_policy(Path(arguments.model), device)
    bos, eos = int(model.config.bos_token_id), int(model.config.eos_token_id)
    prompts = cut_prompts(model, arguments.prompts, arguments.longest, bos)
    print(
        "| prompts x samples x tokens | | prefdag, s | generate / prefdag | former / prefdag |\n|---|---|---|---|---|"
    )
    for size in arguments.batch:
        for num, temperature in ((arguments.samples, 1.0), (1, 0.0), (arguments.samples, 0.0)):
            settings = Sampling(
                num_samples=num, temperature=temperature, max_new_tokens=arguments.tokens, batch_size=size
            )
            print(measured(model, prompts, settings, eos, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
