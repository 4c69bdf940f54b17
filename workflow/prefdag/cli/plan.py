"""Estimate the GPU hours and memory of a suite: arithmetic on its size, not a measurement.

A token costs 2 N FLOPs forward and 6 N forward and backward, with N parameters (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1). Sampling reads every weight once a step, for all responses of a batch. Training takes float32 weights,
gradients and optimizer state, and 34 bytes of bf16 activations per token, layer and hidden unit (Korthikanti et al.
2022, arXiv 2205.05198, equation 1, without attention scores). With an adapter, gradients and optimizer state are those
of its own weights alone, and a base is loaded as float32 before it is held in fewer bits.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefdag.cli.commands import options
from prefdag.cli.size import H100, Machine, blocks_of, sized
from prefdag.config import jobs
from prefdag.config.jobs import against
from prefdag.config.online.methods import TokenMethod, reads_values
from prefdag.config.round_jobs import generation_of_samples
from prefdag.config.rounds import JUDGE
from prefdag.config.sections.adapter import Adapter
from prefdag.config.sections.judge import LLM, name_of
from prefdag.config.sections.preference import Preference
from prefdag.config.sections.reward import Reward
from prefdag.config.sections.sampling import Sampling
from prefdag.config.sections.size import Size
from prefdag.config.sections.training import Training
from prefdag.config.selection.select_jobs import validation_sets
from prefdag.config.suite import Suite, read_ordinary_suite
from prefdag.evaluation.judge.run import FOLDER, Pair, Questions, pairs_of
from prefdag.evaluation.scores import Scores, match_rows, read_answers
from prefdag.planning.machine import bf16_warning

HOUR = 3600.0
BASE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "nf4": 0.55}  # of a frozen weight; nf4 with the constants of its blocks


@dataclass(frozen=True)
class JobCost:
    """The jobs of one stage: how many, their GPU hours in total, and the most memory that one of them needs."""

    stage: str
    jobs: int
    hours: float
    gigabytes: float


def disk(suite: Suite, size: Size) -> float:
    """Return the GB that a suite takes on disk.

    These are the float32 weights of the base and SFT models, rewards, runs and their checkpoints, and the resumable
    state of one training.
    """
    rewards = [*_reward_models(suite), *_discriminators(suite)]
    trained = [suite.sft] if suite.sft.max_steps != 0 else []  # otherwise it is the base model's file
    trainings = [*trained, *rewards, *_trainings(suite)]
    checkpoints = sum(len(one.kept_steps) for one in _trainings(suite))
    if not any(_adapter(one) for one in trainings):
        state = 4 + max(_moments(one) for one in trainings)
        return size.parameters * (4 * (1 + len(trainings) + checkpoints) + state) / 1e9
    saved = sum(4 * _trained(one, size) for one in trainings)
    saved += sum(4 * _trained(one, size) * len(one.kept_steps) for one in _trainings(suite))
    return (4 * size.parameters + saved + max((4 + _moments(one)) * _trained(one, size) for one in trainings)) / 1e9


def _moments(training: Training) -> int:
    """Return the bytes of optimizer state per parameter."""
    return {"adamw": 8, "rmsprop": 4}[training.optimizer]


def _adapter(training: Training) -> Adapter | None:
    """Return the adapter that is trained in place of every weight, if there is one."""
    adapter: Adapter | None = getattr(training, "adapter", None)
    return adapter


def _trained(training: Training, size: Size) -> float:
    """Return the number of trained weights: all, or about `rank` times the sides of each layer of an adapter.

    The sides of a block's linear layers, input and output, add up to about 20 hidden sizes in a Llama.
    """
    if (adapter := _adapter(training)) is None:
        return size.parameters
    sides = 20 if adapter.target == "all-linear" else min(20, 3 * len(adapter.target))
    return min(float(size.parameters), adapter.rank * sides * size.layers * size.hidden_size)


def _held(training: Training, size: Size) -> float:
    """Return the bytes of weights, gradients and optimizer state; those of a frozen base in its own type."""
    trained = (8 + _moments(training)) * _trained(training, size)
    adapter = _adapter(training)
    return trained + (BASE_BYTES[adapter.base] * size.parameters if adapter else 0)


def _flops(training: Training) -> int:
    """Return the FLOPs of a token and weight, forward and backward: frozen weights get no gradient of their own."""
    return 6 if _adapter(training) is None else 4


def job_costs(suite: Suite, size: Size, machine: Machine = H100) -> Iterator[JobCost]:
    """Yield the cost of every stage that runs a model, in the order of the DAG."""
    prompt, response, pairs = size.prompt_tokens, size.response_tokens, size.comparisons
    tokens = pairs * (prompt + 2 * response)
    weights = 4 * size.parameters / 1e9  # float32, in GB
    prompts = pairs * 2 // (suite.pairs.num_samples * (suite.pairs.num_samples - 1)) if suite.pairs else pairs
    if suite.pretrain:
        yield _training("pretrain", [suite.pretrain], size, machine, *blocks_of(suite, suite.pretrain, size, prompts))
    if suite.sft.max_steps != 0:
        rows, length = size.demonstrations or prompts, size.demonstration_tokens or prompt + response
        yield _training("sft", [suite.sft], size, machine, rows, length)
    if suite.pairs:
        yield JobCost("pairs", 1, _sampling(suite.pairs, size, machine, prompts), weights)
    if suite.reward and not suite.reward.source:
        yield _training("reward", _reward_models(suite), size, machine, pairs, prompt + 2 * response)
    if discriminators := _discriminators(suite):
        yield _training("discriminator", discriminators, size, machine, pairs, prompt + 2 * response)
    if any("reference" in run.objective.reads and not run.online for run in suite.trained):
        yield JobCost("reference", 1, 2 * size.parameters * tokens / machine.flops / HOUR, weights)
    if trainings := _trainings(suite, on_policy=False):
        yield _training("preference", trainings, size, machine, pairs, prompt + 2 * response)
    yield from _on_policy(suite, size, machine)
    sets = [*jobs.answers(suite), *validation_sets(suite)]
    sampled = [suite.generate.settings(one.variant) for one in sets if not one.is_chosen]
    prompts_of = [one.max_prompts or pairs // 10 for one in sampled]
    of_rounds = [
        generation_of_samples(suite, run.name) for run in suite.runs if run.rounds for _ in range(run.rounds.rounds)
    ]
    hours = sum(_sampling(one, size, machine, prompts) for one, prompts in zip(sampled, prompts_of, strict=True))
    hours += sum(_sampling(one, size, machine, one.max_prompts or prompts) for one in of_rounds)
    yield JobCost("generate", len(sampled) + len(of_rounds), hours, weights)
    responses = sum(prompts * one.num_samples for one, prompts in zip(sampled, prompts_of, strict=True))
    models = 2 + (2 if suite.reward else 0)  # policy and SFT; the reward model before and after its training
    hours = models * 2 * size.parameters * responses * (prompt + response) / machine.flops / HOUR
    yield JobCost("score", len(sampled), hours, models * weights)


def _reward_models(suite: Suite) -> list[Reward]:
    """Return the settings of each training of the suite's reward models."""
    if suite.reward is None or suite.reward.source:
        return []
    models = [suite.reward, *map(suite.reward.variant, suite.reward.variants)]
    return [one for one in models for _ in one.trainings]


def _discriminators(suite: Suite) -> list[Reward]:
    """Return the settings of each training of the reward models of rounds."""
    rounds = [run.rounds.rounds for run in suite.runs if run.rounds and run.rounds.discriminator]
    trained = [suite.reward] * len(suite.reward.trainings) if suite.reward else []
    return trained * sum(rounds)


def _trainings(suite: Suite, on_policy: bool = True) -> list[Preference]:
    """Return the settings of each training of a run, or of each of its rounds. on_policy: those of one job as well."""
    runs = [run for run in suite.trained if on_policy or not run.online]
    return [run.preference for run in runs for _ in range(run.rounds.rounds if run.rounds else 1)]


def _on_policy(suite: Suite, size: Size, machine: Machine) -> Iterator[JobCost]:
    """Yield the cost of trainings that sample: a line for policy gradients, one for pair losses.

    A round samples, scores, measures log-probs under policy and reference in a forward pass each, and trains `epochs`
    times. A value head with a trunk of its own and a trained or implicit reward are models of the policy's size.
    """
    for stage in ("policy", "online"):
        runs = [run for run in suite.trained if jobs.training_folder(suite, run.name).startswith(f"{stage}/")]
        hours = most = 0.0
        for run in runs:
            settings = jobs.online_of(suite, run.name)
            method = run.objective
            critics = int(isinstance(method, TokenMethod) and method.value == "own" and reads_values(method))
            scorers = int(settings.reward == "trained" or settings.implicit_run is not None)
            response = min(size.response_tokens, settings.max_new_tokens)
            tokens = settings.batch_size * (size.prompt_tokens + settings.samples * response)
            first = int(settings.epochs * settings.minibatches > 1)  # old log-probs; otherwise the update's are taken
            passes = 2 * (settings.reads_reference + scorers + first * (1 + critics))
            passes += settings.epochs * (_flops(settings) + 6 * critics)
            sampling = Sampling(
                num_samples=settings.samples,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.sampling_batch_size,
            )
            rounds = settings.max_steps
            hours += rounds * _sampling(sampling, size, machine, settings.batch_size)
            hours += rounds * passes * size.parameters * tokens / machine.flops / HOUR
            copies = settings.reads_reference * (_adapter(settings) is None) + scorers
            held = _held(settings, size) + ((8 + _moments(settings)) * critics + 4 * copies) * size.parameters
            least = size.prompt_tokens + settings.samples * response
            activations = 34 * size.layers * size.hidden_size * max(settings.tokens_per_batch, least)
            most = max(most, 4 * size.parameters / 1e9, (held + activations) / 1e9)
        if runs:
            yield JobCost(stage, len(runs), hours, most)


def _training(
    stage: str, trainings: Sequence[Training], size: Size, machine: Machine, comparisons: int, tokens: int
) -> JobCost:
    hours = most = 0.0
    for one in trainings:
        seen = (one.max_steps or math.ceil(one.epochs * comparisons / one.batch_size)) * one.batch_size
        hours += _flops(one) * size.parameters * seen * tokens / machine.flops / HOUR
        activations = 34 * size.layers * size.hidden_size * max(one.tokens_per_batch, tokens)
        most = max(most, 4 * size.parameters / 1e9, (_held(one, size) + activations) / 1e9)  # loaded as float32
    return JobCost(stage, len(trainings), hours, most)


def _sampling(sampling: Sampling, size: Size, machine: Machine, prompts: int) -> float:
    """Return GPU hours: a step takes as long as reading the bf16 weights, or as computing a token of every response."""
    responses = prompts * sampling.num_samples
    steps = math.ceil(responses / sampling.batch_size) * min(size.response_tokens, sampling.max_new_tokens)
    batch = min(responses, sampling.batch_size)
    step = max(2 * size.parameters / machine.bandwidth, 2 * size.parameters * batch / machine.flops)
    return (steps * step + 2 * size.parameters * responses * size.prompt_tokens / machine.flops) / HOUR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")


def run(arguments: argparse.Namespace) -> int:
    """Print a line per stage and their sum, after the number of requests to each judge.

    Tokens are those that the audit counted, if the suite's data is prepared, and the model's size that of its files.
    """
    suite = read_ordinary_suite(arguments.suite)
    if warning := bf16_warning(suite, os.environ):
        print(f"precision: {warning}")
    for judge in suite.judge.models:
        print(requests(suite, judge, Path("results") / suite.name))
    size, counted = sized(suite, Path("results") / suite.name)
    costs = list(job_costs(suite, size))
    tokens = f"{size.prompt_tokens} + 2 x {size.response_tokens} tokens ({counted})"
    print(f"{suite.name}: {size.parameters:.3g} parameters, {size.comparisons:,} comparisons of {tokens}")
    print(f"estimated, not measured, for {H100.name}")
    print(f"{'stage':13} {'jobs':>5} {'GPU hours':>10} {'GB':>6}")
    for one in costs:
        print(f"{one.stage:13} {one.jobs:5} {one.hours:10.2f} {_gigabytes(one.gigabytes):>6}")
    most = max(one.gigabytes for one in costs)
    print(f"{'all':13} {'':5} {sum(one.hours for one in costs):10.2f} {_gigabytes(most):>6}")
    return 0


def _gigabytes(number: float) -> str:
    return f"{number:.0f}" if number >= 1 else f"{number:.2f}"


def requests(suite: Suite, judge: LLM, results: Path) -> str:
    """Return a sentence on the requests to a judge: those that remain, and those for answers still to be generated."""
    counted = remaining = expected = 0
    validation = validation_sets(suite) if suite.select and suite.select.criterion == "win_rate" else []
    for answers in (*jobs.answers(suite), *(one for one in validation if one.policy != "sft")):
        other = against(suite, answers)
        folders = [results / "generate" / str(side) for side in (answers, other) if side]
        if other and all((folder / "generations.jsonl").is_file() for folder in folders):
            questions = Questions(judge, _pairs(folders[0], folders[1], suite), results / FOLDER)
            counted, remaining = counted + len(questions), remaining + len(questions.remaining)
        elif other:
            sampled = suite.generate.settings(answers.variant)
            prompts = sampled.max_prompts or (suite.size.comparisons // 10 if suite.size else 0)
            expected += 2 * prompts * sampled.num_samples
    parts = [f"{remaining:,} of {counted:,} requests remain"] if counted else []
    parts += [f"{expected:,} requests for answers that are not there yet"] if expected else []
    if labels := label_requests(suite, name_of(judge)):
        parts.append(f"at most {labels:,} requests in rounds")
    return f"judge {name_of(judge)}: {', and '.join(parts)}; repeated ones not counted"


def label_requests(suite: Suite, judge: str) -> int:
    """Return how many requests to a judge label samples in rounds, at most: two for each pair that is compared."""
    requests = 0
    for run in suite.runs:
        if run.rounds and suite.reward_of_rounds(run.name) == f"{JUDGE}{judge}":
            pairs, draws = run.rounds.pairs, run.rounds.pairs.num_draws
            prompts = pairs.max_prompts or (suite.size.comparisons if suite.size else 0)
            requests += run.rounds.rounds * prompts * draws * (draws - 1)
        if run.rounds and run.rounds.discriminator and suite.gold_of_rounds(run.name) == f"{JUDGE}{judge}":
            requests += 2 * run.rounds.rounds * run.rounds.discriminator.gold_pairs
    for run in suite.trained:
        if run.online and run.online.judge == judge:
            requests += 2 * run.online.max_steps * run.online.batch_size
    return requests


def _pairs(generations: Path, other: Path, suite: Suite) -> list[Pair]:
    ours, theirs = (Scores(folder, list(read_answers(folder)), {}) for folder in (generations, other))
    rows = match_rows(ours, theirs, more=suite.judge.against == "chosen")
    return pairs_of(generations, other, [(ours.keys[row], theirs.keys[place]) for row, place in rows])
