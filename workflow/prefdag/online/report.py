"""What a round reports: metrics of its responses and updates, and the answers to some fixed prompts.

Shapes: N prompts of G responses; T response tokens.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefdag.config.online.settings import KL, Online
from prefdag.config.sections.sampling import Sampling
from prefdag.data.detokenize import decode_response
from prefdag.data.token_store import Comparison
from prefdag.evaluation.spreadsheets import cell_of
from prefdag.online.rewards import Scorer, check_scores
from prefdag.online.rollouts import Rollouts
from prefdag.online.sampler import OwnSampler
from prefdag.online.targets import Layout, Targets

OFF_TARGET = 2.0  # factor by which a KL may differ from its target
LEAST_ROUNDS = 3  # the metrics of one round are noisy


def round_metrics(
    rollouts: Rollouts, targets: Targets, updates: Sequence[dict[str, float]], settings: Online
) -> dict[str, float]:
    """Return the metrics of a round. updates: those of its updates, in their order."""
    assert rollouts.scores is not None and rollouts.old is not None
    scores, lengths = rollouts.scores, rollouts.lengths.double()
    metrics = {
        "score": scores.mean().item(),
        "score_std": scores.std().item() if scores.numel() > 1 else 0.0,
        "length": lengths.mean().item(),
        "ended": rollouts.ended.double().mean().item(),
        **_divergence(rollouts),
        **targets.metrics,
    }
    if rollouts.entropy is not None:
        metrics["entropy"] = rollouts.entropy.double().mean().item()
    if scores.shape[1] > 1:
        metrics["groups_without_signal"] = (scores.std(1) == 0).double().mean().item()
    metrics["sampler_difference"] = (rollouts.old.double() - rollouts.sampled).abs().max().item()
    if settings.truncates or settings.sampler != "torch":
        metrics["sampler_kl"] = (rollouts.sampled - rollouts.old.double()).mean().item()
    first, last = updates[: settings.minibatches], updates[-settings.minibatches :]
    metrics |= {
        name: _mean(updates, name) for name in updates[0] if name not in ("loss", "policy_grad_norm", "ratio_error")
    }
    metrics["first_ratio_error"] = updates[0]["ratio_error"]
    if settings.epochs > 1:
        for name in ("approx_kl", "clip_fraction"):
            if name in updates[0]:
                metrics |= {f"{name}_first_epoch": _mean(first, name), f"{name}_last_epoch": _mean(last, name)}
    return metrics


def further_metrics(rollouts: Rollouts, updates: Sequence[dict[str, float]], settings: Online) -> dict[str, float]:
    """Return the KL's other estimators and errors, and the approximate KL to the sampling policy of every epoch."""
    metrics = {}
    if rollouts.reference is not None and rollouts.kl is not None:
        _, k1, k2, k3 = _sequence_kl(rollouts)
        metrics = {"k2": k2.mean().item()}
        for name, each in (("k1", k1), ("k2", k2), ("k3", k3)):
            metrics[f"{name}_se"] = _standard_error(each.view(rollouts.lengths.shape))
    if settings.epochs > 1:
        size = settings.minibatches
        for epoch in range(settings.epochs):
            metrics[f"approx_kl_epoch{epoch + 1}"] = _mean(updates[epoch * size : (epoch + 1) * size], "approx_kl")
    return metrics


def _mean(updates: Sequence[dict[str, float]], name: str) -> float:
    values = [each[name] for each in updates]
    return max(values) if name.endswith(("_max", "_error")) else sum(values) / len(values)


def _divergence(rollouts: Rollouts) -> dict[str, float]:
    """Return the sequence KL to the reference: k1, k3, and `kl`, the sum over the vocabulary, with its error."""
    if rollouts.reference is None or rollouts.kl is None:
        return {}
    kl, k1, _, k3 = _sequence_kl(rollouts)
    return {
        "kl": kl.mean().item(),
        "kl_se": _standard_error(kl.view(rollouts.lengths.shape)),
        "k1": k1.mean().item(),
        "k3": k3.mean().item(),
    }


def _sequence_kl(rollouts: Rollouts) -> tuple[Tensor, ...]:
    """Return the KL of each response over the vocabulary, and its estimates k1, k2 and k3: each [N * G]."""
    assert rollouts.old is not None and rollouts.reference is not None and rollouts.kl is not None
    layout = Layout.of(rollouts.lengths.flatten())
    ratio = rollouts.old.double() - rollouts.reference.double()
    tokens = rollouts.kl.double(), ratio, ratio**2 / 2, torch.expm1(-ratio) + ratio
    return tuple(layout.pad(each).sum(1) for each in tokens)


def _standard_error(values: Tensor) -> float:
    """Return the standard error of the mean over prompts, whose responses are not independent: [N, G] -> float."""
    means = values.mean(1)
    return means.std().item() / math.sqrt(len(means)) if len(means) > 1 else 0.0


def missed_target(rounds: Sequence[dict[str, float]], kl: KL) -> str:
    """Return a sentence if the KL of the last rounds is off its target by a factor of two; "" otherwise.

    Args:
        rounds: the metrics of every round.
        kl: the settings; without a target nothing can be missed.
    """
    last = _last(rounds)
    if kl.target is None or not last:
        return ""
    reached = sum(each["kl"] for each in last) / len(last)
    if kl.target / OFF_TARGET <= reached <= kl.target * OFF_TARGET:
        return ""
    first, final = rounds[0]["kl_coefficient"], rounds[-1]["kl_coefficient"]
    remedy = "train longer or at a higher learning rate" if reached < kl.target else "begin with a larger kl.init"
    return (
        f"kl.target: the KL of the last {len(last)} rounds is {reached:.3g} nats, the target {kl.target:g}; the "
        f"coefficient went from {first:.3g} to {final:.3g}; lower kl.horizon ({kl.horizon}), or {remedy}"
    )


def doubts_of(rounds: Sequence[dict[str, float]], settings: Online) -> list[str]:
    """Return a sentence for everything that makes a finished training doubtful, as its last rounds show it."""
    last, doubts = _last(rounds), [missed_target(rounds, settings.kl)]
    if last and not any(each["ended"] for each in last):
        doubts.append(
            f"no answer of the last {len(last)} rounds ended within max_new_tokens ({settings.max_new_tokens}); raise "
            "it, or lower the score of such answers by missing_eos"
        )
    if last and all(each.get("groups_without_signal") == 1 for each in last):
        doubts.append(
            f"all answers to a prompt had equal scores in the last {len(last)} rounds, so the reward taught nothing; "
            "look at the reward, or raise temperature or samples"
        )
    return [doubt for doubt in doubts if doubt]


def _last(rounds: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
    """Return the last tenth of the rounds."""
    return rounds[-max(LEAST_ROUNDS, len(rounds) // 10) :]


def answers_to(
    prompts: Sequence[NDArray[np.int32]], sampler: OwnSampler, scorer: Scorer, settings: Online, number: int
) -> list[dict[str, Any]]:
    """Return the policy's answers to fixed prompts, with the same noise every time.

    Args:
        prompts: token ids of each.
        sampler: the policy itself, also where another one samples the rounds.
        scorer: scores the answers.
        settings: how to sample.
        number: the round, from 0.
    """
    sampling = Sampling(
        seed=settings.seed,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.sampling_batch_size,
    )
    keys = [f"table/{index}" for index in range(len(prompts))]
    samples = sorted(
        sampler([prompt.tolist() for prompt in prompts], keys, sampling, "sampling"), key=lambda one: one.prompt
    )
    compared = [Comparison(prompts[one.prompt], (np.array(one.ids, dtype=np.int32),)) for one in samples]
    scores = scorer(compared) if compared else np.zeros((0, 1))
    if compared:
        check_scores(scores, compared, settings.reward, number)
    return [
        {"round": number + 1, "prompt_id": one.prompt, "ids": one.ids, "score": score, "ended": one.ended}
        for one, score in zip(samples, scores[:, 0].tolist(), strict=True)
    ]


def write_answers(
    path: Path, answers: Sequence[dict[str, Any]], prompts: Sequence[NDArray[np.int32]], tokenizer: Tokenizer
) -> None:
    """Write the answers to fixed prompts as training goes, in the order of prompt and round.

    Args:
        path: the CSV file.
        answers: round, prompt_id, ids, score and ended of each answer.
        prompts: token ids of every prompt.
        tokenizer: decodes them.
    """
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["prompt_id", "round", "prompt", "response", "score", "ended"])
        for one in sorted(answers, key=lambda one: (one["prompt_id"], one["round"])):
            texts = decode_response(tokenizer, prompts[one["prompt_id"]].tolist(), one["ids"])
            writer.writerow([one["prompt_id"], one["round"], *map(cell_of, texts), one["score"], int(one["ended"])])
