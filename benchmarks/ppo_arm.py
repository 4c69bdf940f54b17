"""The PPO of TRL 0.24, the last that had one outside of its experiments: the peer of `benchmarks.on_policy --old-trl`.

Runs on an interpreter of its own (trl 0.24, transformers 4.57, torch), so it imports nothing of prefdag. The reward
costs nothing; the value model starts from the policy's weights, as prefdag's `value: own` does. Prints one JSON line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import PPOConfig, PPOTrainer

from benchmarks.memory import Phase


class EvenTokens(torch.nn.Module):
    """A reward model without products: before each token the share of even ones."""

    base_model_prefix = "backbone"

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        even = (input_ids % 2 == 0).float().cumsum(1) / torch.arange(1, input_ids.shape[1] + 1)
        return SimpleNamespace(hidden_states=[even[:, :, None]])

    def score(self, states: torch.Tensor) -> torch.Tensor:
        return states


class Clock(TrainerCallback):
    """CPU seconds of each round: PPOTrainer announces ends of steps only."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.phase = Phase()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.phase.begin()
        self.before = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.before)
        self.before = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="token ids of each prompt, a JSON list of lists")
    for name in ("samples", "response", "steps", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--kl", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prompts = json.loads(arguments.prompts.read_text())
    rows = [{"input_ids": ids} for ids in prompts for _ in range(arguments.samples)]
    dataset, clock = Dataset.from_list(rows), Clock()
    # Transformers 5 names a class of tokenizers that this version does not have.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.model / "tokenizer.json"), eos_token="t0", pad_token="t1", padding_side="left"
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=torch.float32, num_labels=1)
    with tempfile.TemporaryDirectory() as output:
        settings = PPOConfig(
            output_dir=output, learning_rate=1e-6, total_episodes=len(rows), num_ppo_epochs=arguments.epochs,
            per_device_train_batch_size=len(rows) // arguments.steps, response_length=arguments.response,
            temperature=1.0, kl_coef=arguments.kl, num_sample_generations=0, bf16=False, use_cpu=True,
            gradient_checkpointing=False, logging_steps=1000, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = PPOTrainer(
            settings, tokenizer, policy, reference, EvenTokens(), dataset, value,
            eval_dataset=dataset, callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    print(json.dumps({"seconds": clock.seconds, "start_mb": clock.phase.start_mb, "peak_mb": clock.phase.peak_mb}))


if __name__ == "__main__":
    main()
