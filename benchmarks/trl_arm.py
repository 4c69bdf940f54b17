"""TRL on a model folder and a file of token ids: the benchmark's peer, in a separate process.

python -m benchmarks.trl_arm --arm defaults|tuned|patched|liger --task dpo|reward|sft|reference --model DIR --ids FILE

`defaults` keeps gradient checkpointing and a live reference; `tuned` turns the first off and computes reference
log-probs before; `patched` also scores response positions only on CPU, which TRL 1.16 does on CUDA alone; `liger` is
tuned with Liger's kernels, on CUDA. All are without dropout, in `--precision`, by default float32 on CPU and bf16 over
float32 weights on CUDA (TRL's own default is bf16 on both), and take the pairs in the order of the file. DPO's sums of
log-probs are taken in float64 (TRL's own are float32, whose numbers near -4,000 are 2.4e-4 apart: `--sums float32`).
Prints one JSON line like `benchmarks.micro`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
import trl.trainer.utils
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from benchmarks.memory import Phase
from prefdag.rewards.model import initial_heads

WARM_UP = 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TRAINERS = {
    "dpo": (trl.DPOTrainer, trl.DPOConfig, AutoModelForCausalLM),
    "reference": (trl.DPOTrainer, trl.DPOConfig, AutoModelForCausalLM),
    "reward": (trl.RewardTrainer, trl.RewardConfig, AutoModelForSequenceClassification),
    "sft": (trl.SFTTrainer, trl.SFTConfig, AutoModelForCausalLM),
}


class Clock(TrainerCallback):
    """Seconds of each optimizer step, and the memory of them all."""

    def __init__(self, clock: str) -> None:
        self.clock = CLOCKS[clock]
        self.seconds: list[float] = []
        self.phase = Phase()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.phase.begin()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = now(self.clock)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now(self.clock) - self.began)


def now(clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock()


def in_order(kind: type) -> type:
    """The trainer on token ids as they are, in the order of the file; the reference pass is measured on its way."""

    class Trainer(kind):  # type: ignore[valid-type, misc]
        reference_seconds = reference_start_mb = reference_peak_mb = 0.0

        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *arguments: Any, **options: Any) -> Dataset:
            phase = Phase()
            phase.begin()
            began = now()
            result = super()._precompute_ref_logps(*arguments, **options)
            self.reference_seconds = now() - began
            self.reference_start_mb, self.reference_peak_mb = phase.start_mb, phase.peak_mb
            return result

    return Trainer


def widen(module: torch.nn.Module, inputs: Any, out: Any) -> None:
    """A forward hook: the log-probs go on in float64, to be summed."""
    if getattr(out, "log_probs", None) is not None:
        out.log_probs = out.log_probs.double()


def widened(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """The collator, with a reference's sums in the float64 that the dataset has them in."""

    def collated(examples: Any) -> dict[str, Any]:
        batch = collate(examples)
        for name in {"ref_chosen_logps", "ref_rejected_logps"} & batch.keys():
            batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float64)
        return batch

    return collated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=("defaults", "tuned", "patched", "liger"), required=True)
    parser.add_argument("--task", choices=tuple(TRAINERS), default="dpo")
    parser.add_argument("--per-device", type=int, default=8)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--pairs-per-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--sums", choices=("float64", "float32"), default="float64")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.arm == "patched":
        trl.trainer.utils._use_triton = lambda device: True  # only its choice of positions asks there
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(arguments, folder)))


def measured(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Train, or pass the pairs through the reference; pairs per second are medians over steps after the warm-up."""
    kind, config, auto = TRAINERS[arguments.task]
    num, fast, cuda = arguments.pairs_per_step, arguments.arm != "defaults", torch.cuda.is_available()
    rows = [json.loads(line) for line in arguments.ids.read_text().splitlines()]
    steps = min(arguments.steps, len(rows) // num)
    dpo_options = {}
    if config is trl.DPOConfig:
        precomputed = fast or arguments.task == "reference"
        dpo_options = {"beta": arguments.beta, "precompute_ref_log_probs": precomputed}
    settings = config(
        output_dir=folder,
        per_device_train_batch_size=arguments.per_device,
        gradient_accumulation_steps=num // arguments.per_device,
        max_steps=1 if arguments.task == "reference" else steps,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="constant",
        max_length=None,
        gradient_checkpointing=not fast,
        use_liger_kernel=arguments.arm == "liger",
        bf16=arguments.precision == "bfloat16" if arguments.precision else cuda,
        use_cpu=not cuda,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **dpo_options,
    )
    clock = Clock(arguments.clock)
    head = {"num_labels": 1} if arguments.task == "reward" else {}
    model = auto.from_pretrained(arguments.model, dtype=torch.float32, **head)
    if arguments.task == "reward":
        initial_heads(model, 0.02, (0,))  # prefdag's, so that both start from the same weights
    wide = config is trl.DPOConfig and arguments.sums == "float64"
    if wide:
        model.register_forward_hook(widen)
    dataset = Dataset.from_list([columns(row, arguments.task) for row in rows[: steps * num]])
    trainer = in_order(kind)(
        model, args=settings, train_dataset=dataset, processing_class=_tokenizer(), callbacks=[clock]
    )
    if wide:
        trainer.data_collator = widened(trainer.data_collator)
        if trainer.ref_model is not None:
            trainer.ref_model.register_forward_hook(widen)
    trainer.train()
    start_mb, peak_mb = clock.phase.start_mb, clock.phase.peak_mb
    if arguments.task == "reference":
        rate = len(dataset) / trainer.reference_seconds
        start_mb, peak_mb = trainer.reference_start_mb, trainer.reference_peak_mb
    else:
        rate = num / statistics.median(clock.seconds[min(WARM_UP, len(clock.seconds) - 1) :])
    return {
        "task": arguments.task,
        "pairs_per_s": rate,
        "peak_rss_mb": peak_mb,
        "start_rss_mb": start_mb,
        "peak_cuda_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "device": "cuda" if cuda else "cpu",
        "precision": "bfloat16" if settings.bf16 else "float32",
        "losses": logged(trainer, "loss"),
        "grad_norms": logged(trainer, "grad_norm"),
        "versions": {"torch": torch.__version__, "trl": trl.__version__},
    }


def logged(trainer: Any, name: str) -> list[float]:
    """What the trainer says of each step."""
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def columns(row: dict[str, list[int]], task: str) -> dict[str, list[int]]:
    """One pair as each trainer's collator takes it."""
    prompt, chosen, rejected = (row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    if task == "reward":
        return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
    if task == "sft":
        return {"input_ids": prompt + chosen, "labels": [-100] * len(prompt) + chosen}
    return row


def _tokenizer() -> PreTrainedTokenizerFast:
    """Only its padding id is read."""
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    main()
