"""What the benchmark runs on: models of known shapes with random weights, token ids with the lengths of real data.

Arithmetic costs the same for random weights and ids as for trained ones, so nothing has to be downloaded.
"""

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from prefdag.seeds import generator, named_seed

SHAPES: dict[str, tuple[str, dict[str, int | bool]]] = {
    "small": (
        "llama",
        {
            "vocab_size": 4096,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
    ),
    "pythia-14m": (
        "gpt_neox",
        {
            "vocab_size": 50304,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
    ),
    "pythia-70m": (
        "gpt_neox",
        {
            "vocab_size": 50304,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
        },
    ),
    "qwen2-style": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "imdb": (
        "llama",
        {
            "vocab_size": 8000,
            "hidden_size": 176,
            "intermediate_size": 480,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
        },
    ),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "pythia-2.8b": (
        "gpt_neox",
        {
            "vocab_size": 50304,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    ),
}
LONGEST = 1024  # tokens of a comparison
NUM_SAMPLES = 4  # of a prompt in the profile `samples`
PAIRS = list(itertools.combinations(range(NUM_SAMPLES), 2))


def vocabulary(shape: str) -> int:
    return int(SHAPES[shape][1]["vocab_size"])


def write_model(shape: str, folder: Path) -> Path:
    """Write a model of a shape with weights from a fixed seed; return its folder."""
    kind, sizes = SHAPES[shape]
    torch.manual_seed(named_seed(0, "benchmark", shape))
    config = AutoConfig.for_model(
        kind, bos_token_id=0, eos_token_id=0, pad_token_id=1, max_position_embeddings=2 * LONGEST, **sizes
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def hh(num: int) -> NDArray[np.int64]:
    """Anthropic HH (harmless, test) under the GPT-2 tokenizer: counted, `hh_lengths.csv`, over and over."""
    with (Path(__file__).parent / "hh_lengths.csv").open() as stream:
        rows = [[int(value) for value in row.values()] for row in csv.DictReader(stream)]
    return np.array(rows)[np.arange(num) % len(rows)]


def tldr(num: int) -> NDArray[np.int64]:
    """Reddit TL;DR: long prompts, summaries of about 33 tokens; log-normal, (2P + C + R) / (P + C + R) = 1.84."""
    return _log_normal("tldr", num, (340, 0.3), (33, 0.3))


def ultrafeedback(num: int) -> NDArray[np.int64]:
    """UltraFeedback: responses of hundreds of tokens; log-normal, (2P + C + R) / (P + C + R) = 1.18."""
    return _log_normal("ultrafeedback", num, (100, 0.8), (270, 0.55))


def saferlhf(num: int) -> NDArray[np.int64]:
    """PKU-SafeRLHF under SmolLM2's tokenizer and chat template, a system prompt included; log-normal."""
    return _log_normal("saferlhf", num, (55.6, 0.24), (75, 0.65))


def samples(num: int) -> NDArray[np.int64]:
    """Four samples a prompt, each 64 to 96 tokens and the prompt 8, and all `PAIRS` of them in a row."""
    draw = generator(0, "benchmark", "samples")
    sizes = draw.integers(64, 97, (-(-num // len(PAIRS)), NUM_SAMPLES))[:, PAIRS].reshape(-1, 2)
    return np.insert(sizes, 0, 8, axis=1)[:num]


def even(num: int) -> NDArray[np.int64]:
    """Prompt and response of 1,024 tokens together, half and half: what memory is compared on."""
    return np.full((num, 3), 512)


PROFILES: dict[str, Callable[[int], NDArray[np.int64]]] = {
    "hh": hh,
    "ultrafeedback": ultrafeedback,
    "tldr": tldr,
    "saferlhf": saferlhf,
    "samples": samples,
    "1024": even,
}


def _log_normal(name: str, num: int, prompt: tuple[float, float], chosen: tuple[float, float]) -> NDArray[np.int64]:
    """Lengths of prompt, chosen and rejected: [num, 3]; each given as (median, deviation of the logarithm)."""
    draw = generator(0, "benchmark", name)
    batches: list[NDArray[np.int64]] = []
    while len(batches) < num:
        medians = np.log([prompt[0], chosen[0], 0.93 * chosen[0]])
        lengths = np.exp(draw.normal(medians, [prompt[1], chosen[1], chosen[1]])).astype(np.int64).clip(8)
        if lengths.sum() <= LONGEST:
            batches.append(lengths)
    return np.stack(batches)


def write_ids(profile: str, vocab_size: int, num: int, path: Path) -> Path:
    """`num` pairs of token ids, a JSON line each, as `benchmarks.micro --ids` reads them; returns the path."""
    draw = generator(0, "benchmark", "ids")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    ids_of = dict[tuple[int, ...], list[int]]()
    with path.open("w") as stream:
        for index, lengths in enumerate(PROFILES[profile](num).tolist()):
            row = {}
            for name, size, text in zip(names, lengths, texts_of_pair(profile, index), strict=True):
                if text not in ids_of:
                    ids_of[text] = draw.integers(2, vocab_size, size).tolist()
                row[name] = ids_of[text]
            stream.write(json.dumps(row) + "\n")
    return path


def texts_of_pair(profile: str, index: int) -> list[tuple[int, ...]]:
    """Name the prompt and both responses of pair `index`: what has the same name is the same text."""
    if profile != "samples":
        return [(index, part) for part in range(3)]
    prompt, pair = divmod(index, len(PAIRS))
    return [(prompt,), *((prompt, sample) for sample in PAIRS[pair])]
