"""On-policy steps against TRL 1.16: python -m benchmarks.on_policy --output FOLDER

Every cell has the same random Llama, prompts, number of samples and length of responses for both sides: 16 prompts of
4 samples (Online DPO: 32 of 2), float32, one update per round, a reference with coefficient 0.05, a reward that costs
nothing, and an end-of-turn that is never sampled. Arms run in turn in processes of their own, one thread; the figure is
CPU seconds per step, the median after a warm-up. Memory is what the steps add to the resident set before the first one.
Writes steps.csv (every run) and ratios.csv, and prints a table. Runs in steps.csv are not repeated, so a benchmark
may be run in parts: other cells, methods or more rounds, to the same folder.

`--methods ppo --old-trl PYTHON` compares PPO, of 4 epochs and a value model of the policy's size, with that of TRL 0.24
on an interpreter of its own; `ppo_shared` is prefdag's with the value head on the policy's trunk, against the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.memory import Phase
from prefdag.config.model import Architectural
from prefdag.models.loading import build, set_up

CELLS = [(16, 48, 2048), (8, 64, 2048), (340, 40, 2048), (16, 48, 49152), (8, 64, 49152), (340, 40, 49152)]
METHODS = ("grpo", "rloo", "online_dpo")
EPOCHS = 4  # of PPO
KL = 0.05
EOS = 0
KEYS = ("round", "method", "prompt", "response", "vocabulary", "side")


def groups_of(method: str) -> tuple[int, int]:
    """Return prompts and samples per prompt of a step."""
    return (32, 2) if method == "online_dpo" else (16, 4)


def write_model(folder: Path, vocabulary: int) -> None:
    """Write a random Llama of 4 layers of 256 whose end-of-turn has no probability, and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shape = Architectural(architecture="llama", hidden_size=256, intermediate_size=1024, layers=4, heads=4, context=512)
    model = build(shape, vocabulary, 1, EOS, 0)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    words = {f"t{index}": index for index in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t2"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="t0", pad_token="t1", padding_side="left"
    ).save_pretrained(folder)


def prompts_of(num: int, length: int, vocabulary: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(2, vocabulary, length).tolist() for _ in range(num)]


def reward_of(ids: list[int]) -> float:
    """Return the share of even tokens: it costs nothing, and differs between samples."""
    return float(np.mean(np.asarray(ids) % 2 == 0))


def ours(arguments: argparse.Namespace, folder: Path) -> tuple[list[float], Phase]:
    """Return CPU seconds of each round of `OnlineTraining`, and their memory."""
    from prefdag.config.objectives import objective
    from prefdag.config.online.methods import TokenMethod, policy_method
    from prefdag.config.online.settings import Online
    from prefdag.losses.registry import loss_of
    from prefdag.models.loading import load_policy
    from prefdag.online.critic import load_critic
    from prefdag.online.loop import OnlineTraining
    from prefdag.online.round import Models

    device = set_up(1)
    num, samples = groups_of(arguments.method)
    of_pairs = arguments.method == "online_dpo"
    kl = {"coefficient": KL, "where": "loss", "estimator": "k3"} if arguments.method == "grpo" else KL
    settings = Online.parse(
        {
            "batch_size": num,
            "samples": samples,
            "max_steps": arguments.steps,
            "learning_rate": 1e-6,
            "max_new_tokens": arguments.response,
            **({"labels": "hard"} if of_pairs else {"kl": kl}),
            "epochs": EPOCHS if arguments.method == "ppo" else 1,
            "tokens_per_batch": 2048,
            "sample_table": 0,
        },
        "benchmark",
        "online",
    )
    values: dict[str, Any] = {"method": "dpo", "beta": KL} if of_pairs else {"method": arguments.method}
    if arguments.method == "ppo":
        values |= {"whiten": "population", "value": "shared" if arguments.side == "shared" else "own"}
    method = (objective if of_pairs else policy_method)(values, "benchmark", "method")
    loss = loss_of(method) if of_pairs else None
    pair_loss = None if loss is None else lambda policy, reference: loss(policy, reference=reference)
    model, reference = load_policy(folder, device), load_policy(folder, device).requires_grad_(False)
    critic = load_critic(method, model, folder, None, 0, device) if isinstance(method, TokenMethod) else None

    def scores(comparisons: Any) -> np.ndarray:
        return np.array([[reward_of(one.tolist()) for one in each.responses] for each in comparisons])

    rows = prompts_of(num * arguments.steps, arguments.prompt, arguments.vocabulary)
    prompts = [np.array(ids, np.int32) for ids in rows]
    training = OnlineTraining(
        Models(model.train(), reference, critic),
        method,
        settings,
        prompts,
        scores,
        -1,
        pair_loss=pair_loss,
    )
    phase = Phase()
    phase.begin()
    seconds, before = [], time.process_time()
    for _ in training.rounds():
        seconds.append(time.process_time() - before)
        before = time.process_time()
    return seconds, phase


def peer(arguments: argparse.Namespace, folder: Path) -> tuple[list[float], Phase]:
    """Return CPU seconds of each step of TRL's trainer, and their memory."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(1)
    num, samples = groups_of(arguments.method)
    if arguments.method == "online_dpo":
        from trl.experimental.online_dpo import OnlineDPOConfig as Config
        from trl.experimental.online_dpo import OnlineDPOTrainer as Trainer

        options = {"per_device_train_batch_size": num, "max_new_tokens": arguments.response, "beta": KL}
    else:
        import trl

        Config, Trainer = (
            (trl.GRPOConfig, trl.GRPOTrainer) if arguments.method == "grpo" else (trl.RLOOConfig, trl.RLOOTrainer)
        )
        options = {"per_device_train_batch_size": num * samples, "num_generations": samples, "beta": KL}
        options |= {"max_completion_length": arguments.response}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.before = 0.0
            self.phase = Phase()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.phase.begin()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.before = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.before)

    clock, tokenizer = Clock(), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = model.config.eos_token_id = EOS
    model.generation_config.suppress_tokens = [EOS]
    rows = prompts_of(num * arguments.steps, arguments.prompt, arguments.vocabulary)
    dataset = Dataset.from_list([{"prompt": " ".join(f"t{index}" for index in ids)} for ids in rows])

    def rewards(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        return [reward_of([int(word[1:]) for word in text.split()] or [1]) for text in completions]

    with tempfile.TemporaryDirectory() as output:
        settings = Config(
            output_dir=output, learning_rate=1e-6, max_steps=arguments.steps, temperature=1.0, bf16=False,
            use_cpu=True, gradient_checkpointing=False, logging_steps=1000, save_strategy="no", report_to="none",
            disable_tqdm=True, **options,
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            reward_funcs=rewards,
            callbacks=[clock],
        )
        if hasattr(trainer, "generation_config"):
            trainer.generation_config.suppress_tokens = [EOS]
        trainer.train()
    return clock.seconds, clock.phase


def run(
    side: str, method: str, cell: tuple[int, int, int], folder: Path, steps: int, old_trl: str | None = None
) -> dict[str, Any]:
    """Run one arm in a process of its own."""
    prompt, response, vocabulary = cell
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [sys.executable, "-m", "benchmarks.on_policy", "--side", side, "--method", method]
    options: dict[str, Any] = {"model": folder, "response": response, "steps": steps}
    if method == "ppo" and side == "trl":
        assert old_trl is not None
        num, samples = groups_of(method)
        prompts = folder / "prompts.json"
        prompts.write_text(json.dumps(prompts_of(num * steps, prompt, vocabulary)))
        command = [old_trl, "-m", "benchmarks.ppo_arm"]
        options |= {"prompts": prompts, "samples": samples, "epochs": EPOCHS, "kl": KL}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])  # of its own environment otherwise
    else:
        options |= {"prompt": prompt, "vocabulary": vocabulary}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} {method} {cell}: {done.stderr[-2000:]}")
    values = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "method": method,
        "prompt": prompt,
        "response": response,
        "vocabulary": vocabulary,
        "side": side,
        "steps": steps,
        "seconds_per_step": statistics.median(values["seconds"][1:]),
        "added_mb": values["peak_mb"] - values["start_mb"],
    }


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Return TRL's seconds over ours, by cell: the median over rounds, and the smallest and largest ratio.

    `memory` is what our steps add over what TRL's add, the median.
    """
    shared = rows[(rows["method"] == "ppo") & (rows["side"] != "prefdag")].replace({"side": {"shared": "prefdag"}})
    if (rows["side"] == "shared").any():
        rows = pd.concat([rows[rows["side"] != "shared"], shared.assign(method="ppo_shared")])
    keys = list(KEYS[1:-1])
    index = [*keys, "round"]
    seconds, added = (
        rows.pivot_table(index=index, columns="side", values=name) for name in ("seconds_per_step", "added_mb")
    )
    table = (seconds["trl"] / seconds["prefdag"]).groupby(level=keys).agg(["median", "min", "max"])
    table["memory"] = (added["prefdag"] / added["trl"]).groupby(level=keys).median()
    medians = rows.groupby([*keys, "side"])[["seconds_per_step", "added_mb"]].median().unstack("side")
    medians.columns = [f"{side}_{name}" for name, side in medians.columns]
    return table.join(medians).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=(*METHODS, "ppo"))
    parser.add_argument("--old-trl", metavar="PYTHON", help="an interpreter with trl 0.24, for ppo")
    parser.add_argument("--cells", type=int, nargs="+", default=range(len(CELLS)), help="numbers of cells, from 0")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", choices=("prefdag", "shared", "trl"), help="run one arm, and print its seconds")
    parser.add_argument("--method", choices=(*METHODS, "ppo"))
    parser.add_argument("--model", type=Path)
    for name in ("prompt", "response", "vocabulary"):
        parser.add_argument(f"--{name}", type=int)
    arguments = parser.parse_args()
    if arguments.side:
        seconds, phase = (peer if arguments.side == "trl" else ours)(arguments, arguments.model)
        print(json.dumps({"seconds": seconds, "start_mb": phase.start_mb, "peak_mb": phase.peak_mb}))
        return
    if "ppo" in arguments.methods and arguments.old_trl is None:
        parser.error("--methods ppo: TRL 1.16 has no PPO; pass --old-trl PYTHON")
    arguments.output.mkdir(parents=True, exist_ok=True)
    steps_file = arguments.output / "steps.csv"
    rows = pd.read_csv(steps_file).to_dict("records") if steps_file.is_file() else []
    done = {tuple(row[name] for name in KEYS) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for cell in [CELLS[number] for number in arguments.cells]:
            model = Path(folder, str(cell[2]))
            if not model.is_dir():
                write_model(model, cell[2])
            for number in range(arguments.rounds):
                for method in arguments.methods:
                    for side in ("prefdag", "shared", "trl") if method == "ppo" else ("prefdag", "trl"):
                        if (number, method, *cell, side) in done:
                            continue
                        rows.append(
                            {"round": number, **run(side, method, cell, model, arguments.steps, arguments.old_trl)}
                        )
                        print(rows[-1], flush=True)
                        pd.DataFrame(rows).to_csv(steps_file, index=False)
    table = ratios(pd.DataFrame(rows))
    table.to_csv(arguments.output / "ratios.csv", index=False)
    print(table.to_string(index=False))
    others = table["median"][table["method"].isin(METHODS)]
    print(f"geometric mean without PPO, {len(others)} cells: {np.exp(np.log(others).mean()):.2f}")


if __name__ == "__main__":
    main()
