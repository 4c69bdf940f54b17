"""The stages `reward` and `score` themselves, on a tiny policy: each option trains, resumes and scores as it says."""

import json
import math
import os
import signal
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from artifacts import manifest_of, run_of
from comparisons import comparisons, naive_values, stored, tiny
from prefdag.cli.main import main
from prefdag.data.token_store import Comparison, Store, StoreWriter
from prefdag.models.loading import load_policy
from prefdag.models.naive import naive_logprobs
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.evaluation import score_all
from prefdag.rewards.model import load_reward_model, untrained_reward_model
from prefdag.stages import reward as stage
from prefdag.training.checkpoint import Checkpoint

CPU = torch.device("cpu")
SPLITS = {"train": 12, "validation": 5, "test": 7}
SCORED = [[1.5 + row / 4, 1.0, row / 12] for row in range(12)]
BASE = {"batch_size": 12, "learning_rate": 1e-2, "max_steps": 3, "epochs": 9, "head_std": 0.3, "tokens_per_batch": 60}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and comparisons of three responses, scored, where the stages expect them."""
    folder = tmp_path_factory.mktemp("rewards") / "suite"
    tiny(dtype=torch.float32).save_pretrained(folder / "sft/model")
    manifest_of(folder / "sft")
    for number, (split, num) in enumerate(SPLITS.items()):
        stored(folder / f"prepare/comparisons/{split}", comparisons(num, 3, seed=number), SCORED[:num])
    manifest_of(folder / "prepare/comparisons")
    return folder


def train(suite: Path, folder: Path, comparisons: str = "prepare/comparisons", **options: Any) -> int:
    """Run the stage into `folder`/reward; returns its exit code."""
    config = json.dumps({"reward": {**BASE, **options}})
    inputs = {"--policy": suite / "sft/manifest.json", "--comparisons": suite / comparisons / "manifest.json"}
    arguments = [str(word) for pair in inputs.items() for word in pair]
    return main(["reward", "--config", config, *arguments, "--output", str(folder / "reward/manifest.json")])


def plain_loss(options: dict[str, Any], values: list[float], lengths: list[int], scores: list[float]) -> float:
    """The loss of one head's rewards of one comparison, with nothing but `math`."""
    n = lengths
    compared = [r + options.get("length_penalty", 0) * n[k] for k, r in enumerate(values)]
    pairs = list(combinations(range(len(values)), 2))
    total = 0.0
    if options.get("loss") == "plackett_luce":
        for k in range(len(values) - 1):
            total += math.log(sum(math.exp(r) for r in compared[k:])) - compared[k]
    else:
        wrong = options.get("label_smoothing", 0)
        for winner, loser in pairs:
            z = (
                compared[winner]
                - compared[loser]
                - ((scores[winner] - scores[loser]) if options.get("margin") == "scores" else 0)
            )
            total += ((1 - wrong) * math.log(1 + math.exp(-z)) + wrong * math.log(1 + math.exp(z))) / len(pairs)
    match options.get("centring"):
        case "pair_sum":
            penalty = sum((values[winner] + values[loser]) ** 2 for winner, loser in pairs) / len(pairs)
        case "each":
            penalty = sum(r**2 for r in values) / len(values)
        case _:
            return total
    return total + options["centring_coefficient"] * penalty


OPTIONS = [
    {},
    {"label_smoothing": 0.2, "margin": "scores"},
    {"loss": "plackett_luce", "centring": "each", "centring_coefficient": 0.05},
    {"centring": "pair_sum", "centring_coefficient": 0.05},
    {"length_normalisation": 2.0},
    {"length_penalty": 0.05},
    {"heads": 3, "combine": "mean_minus_deviation", "normalise": "train"},
    {"heads": 2, "seeds": [4, 1], "combine": "minimum", "normalise": "validation", "length_normalisation": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_every_option_trains_what_it_says(options: dict[str, Any], suite: Path, tmp_path: Path) -> None:
    """The first step, of all comparisons, has the loss that plain arithmetic finds for the untrained heads.

    The saved model scores as the stage reported, trained and untrained; training lowers the loss.
    """
    assert train(suite, tmp_path, **options) == 0
    folder, seeds = tmp_path / "reward", options.get("seeds", [0])
    store = Store.open(suite / "prepare/comparisons/train")
    pairs = [store[index] for index in range(len(store))]
    untrained = untrained_reward_model(suite / "sft/model", folder, CPU)
    values = values_of(untrained.members, pairs, options)
    heads = options.get("heads", 1)
    curves = pd.read_csv(folder / "curves.csv")
    assert list(curves["step"]) == list(range(1, 3 * len(seeds) + 1))
    for place in range(len(seeds)):
        member = values[..., place * heads : (place + 1) * heads]
        losses = [
            plain_loss(options, member[row, :, head].tolist(), [len(r) for r in one.responses], SCORED[row])
            for row, one in enumerate(pairs)
            for head in range(heads)
        ]
        assert curves["loss"][3 * place] == pytest.approx(np.mean(losses), abs=1e-5)
        assert curves["loss"][3 * place + 2] < curves["loss"][3 * place]
    table = pd.read_csv(folder / "held_out.csv")
    held_out = Store.open(suite / "prepare/comparisons/test")
    assert table[["row", "prompt"]].to_numpy().tolist() == [list(pair) for pair in zip(held_out.rows, held_out.prompts)]
    tokens = [[len(response) for response in held_out[index].responses] for index in range(len(held_out))]
    assert table[[f"tokens_rank{k}" for k in (1, 2, 3)]].to_numpy().tolist() == tokens
    for when, model in (("before", untrained), ("after", load_reward_model(folder, CPU))):
        scored = score_all(model, held_out, BASE["tokens_per_batch"], CPU)
        assert np.array_equal(table[[f"{when}_rank{k}" for k in (1, 2, 3)]].to_numpy(np.float32), scored)
    facts = json.loads((folder / "evaluation.json").read_text())
    assert facts == json.loads((folder / "manifest.json").read_text())["facts"]
    assert len(facts) == 2 + (heads * len(seeds) if heads * len(seeds) > 1 else 0)


@torch.no_grad()
def values_of(members: Any, pairs: list[Comparison], options: dict[str, Any]) -> Tensor:
    """Values of the untrained heads [B, K, H], length normalised where the options say so."""
    values = naive_values(members, pairs)
    if "length_normalisation" not in options:
        return values
    lengths = torch.tensor([[len(response) for response in one.responses] for one in pairs])
    return values / (options["length_normalisation"] + lengths)[..., None]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("how", ["mean", "mean_minus_deviation", "minimum"])
def test_normalised_rewards_have_mean_zero_on_their_split(how: str, split: str, suite: Path, tmp_path: Path) -> None:
    assert train(suite, tmp_path, heads=2, combine=how, normalise=split, max_steps=1) == 0
    model = load_reward_model(tmp_path / "reward", CPU)
    means = {
        name: score_all(model, Store.open(suite / "prepare/comparisons" / name), 60, CPU).mean(dtype=float)
        for name in SPLITS
    }
    assert abs(means.pop(split)) < 1e-6 and all(abs(mean) > 1e-3 for mean in means.values())


def test_members_are_trainings_of_their_own(suite: Path, tmp_path: Path) -> None:
    """A member of an ensemble is, byte for byte, what a training with its seed alone gives."""
    assert train(suite, tmp_path / "both", seeds=[4, 1], batch_size=5) == 0
    for seed, folder in ((4, "model"), (1, "seeds/1")):
        assert train(suite, tmp_path / str(seed), seed=seed, batch_size=5) == 0
        alone = tmp_path / str(seed) / "reward/model/model.safetensors"
        assert (tmp_path / "both/reward" / folder / "model.safetensors").read_bytes() == alone.read_bytes()
    assert not np.array_equal(*(np.fromfile(path, np.uint8) for path in tmp_path.glob("?/reward/model/*.safetensors")))
    facts = json.loads((tmp_path / "both/reward/evaluation.json").read_text())
    assert list(facts) == ["before", "after", "seed 4", "seed 1"]
    for seed in (4, 1):
        alone = json.loads((tmp_path / str(seed) / "reward/evaluation.json").read_text())
        assert facts[f"seed {seed}"] == alone["after"]


@pytest.mark.parametrize("seconds_between", [0, 60], ids=["saved at every step", "saved when stopped"])
def test_an_interrupted_ensemble_resumes_bit_for_bit(
    seconds_between: float, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the second member's second step: exit code 143; the next call leaves the very same manifest."""
    options = {"seeds": [4, 1], "heads": 2, "normalise": "train", "combine": "minimum", "batch_size": 5}
    assert train(suite, tmp_path / "straight", **options) == 0
    monkeypatch.setattr(stage, "Checkpoint", partial(Checkpoint, seconds_between=seconds_between))
    right, steps = stage.losses, list[int]()

    def interrupting(*arguments: Any) -> Any:
        taken = sum(len(ids) for ids in steps)
        steps.append(arguments[4])
        if taken == 4 + 4 + 4 + 4:  # three steps of the first member (12 comparisons), one of the second
            os.kill(os.getpid(), signal.SIGTERM)
        return right(*arguments)

    monkeypatch.setattr(stage, "losses", interrupting)
    assert train(suite, tmp_path / "stopped", **options) == 143
    states = sorted(path.parent.name for path in (tmp_path / "stopped/.resume").rglob("state.pt"))
    assert states == (["seed1", "seed4"] if seconds_between == 0 else ["seed1"])
    assert not (tmp_path / "stopped/reward/manifest.json").exists()
    steps.clear()
    steps.append([0] * 1000)
    assert train(suite, tmp_path / "stopped", **options) == 0
    again = sum(len(ids) for ids in steps[1:])
    assert again == (4 if seconds_between == 0 else 12 + 4), "only what was not saved is trained again"
    manifests = [(tmp_path / name / "reward/manifest.json").read_bytes() for name in ("straight", "stopped")]
    assert manifests[0] == manifests[1]


def test_comparisons_that_an_option_cannot_use(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No scores for a margin, nothing held out to normalise on, single responses: a sentence before any step."""
    for name, num_responses, num_validation in (("bare", 2, 0), ("single", 1, 1)):
        for split, num in (("train", 4), ("validation", num_validation), ("test", 3)):
            if num:
                stored(tmp_path / name / split, comparisons(num, num_responses))
            else:
                StoreWriter(tmp_path / name / split, num_responses, scored=False).close()
        manifest_of(tmp_path / name)
    for name, options, sentence in (
        ("bare", {"margin": "scores"}, "reward.margin: {}/train has no scores; use data with scores"),
        ("bare", {"normalise": "validation"}, "reward.normalise: the split validation is empty; use the other split"),
        ("single", {}, "{}/train: one response per prompt; a reward model needs"),
    ):
        assert train(suite, tmp_path / "out", str(tmp_path / name), **options) == 2
        assert sentence.format(tmp_path / name) in capsys.readouterr().err


def generations(folder: Path, answers: list[Comparison]) -> None:
    folder.mkdir(parents=True)
    with (folder / "generations.jsonl").open("w") as stream:
        for index, one in enumerate(answers):
            ids = {"prompt_ids": one.prompt.tolist(), "ids": one.responses[0].tolist()}
            about = {"prompt_id": index // 2, "sample": index % 2, "prompt": "p", "response": "r", "ended": True}
            stream.write(json.dumps({**about, **ids}) + "\n")
    manifest_of(folder)


BETAS = {"dpo": 0.1, "strong": 0.4}


def score(folder: Path, suite: Path, implicit: tuple[str, ...] = tuple(BETAS), output: str = "dpo") -> int:
    """Score the generations of `dpo` by the reward model and the implicit rewards; returns the exit code."""
    names = {"generations": "generate/dpo", "policy": "preference/dpo", "reward": "reward"}
    arguments = [text for name, path in names.items() for text in (f"--{name}", str(folder / path / "manifest.json"))]
    for name, path in {"reference": "sft", "comparisons": "prepare/comparisons"}.items():
        arguments += [f"--{name}", str(suite / path / "manifest.json")]
    arguments += ["--implicit", *(str(folder / f"preference/{run}/manifest.json") for run in implicit)]
    config = json.dumps({"score": {"reward": "trained", "implicit": list(BETAS), "tokens_per_batch": 40}})
    return main(["score", "--config", config, *arguments, "--output", str(folder / f"score/{output}/manifest.json")])


@pytest.fixture(scope="module")
def scored(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Comparison]]:
    """Generations of the run `dpo` scored by an ensemble and by two implicit rewards, one of them its own."""
    folder, pairs = tmp_path_factory.mktemp("scored"), comparisons(6, 1, seed=9)
    assert train(suite, folder, heads=2, combine="minimum", normalise="train") == 0
    generations(folder / "generate/dpo", pairs)
    for run, beta in BETAS.items():
        run_of(folder / f"preference/{run}", "dpo", {"reference": "x"}, beta=beta)
    assert score(folder, suite) == 0
    return folder, pairs


def test_implicit_rewards_are_given_in_the_suites_order(
    suite: Path, scored: tuple[Path, list[Comparison]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = scored
    assert score(folder, suite, ("strong", "dpo"), "other") == 2
    assert "score --implicit: expected the manifests of dpo, strong, in this order" in capsys.readouterr().err


@torch.no_grad()
def test_generations_are_scored_by_every_reward(suite: Path, scored: tuple[Path, list[Comparison]]) -> None:
    """The ensemble as it is read back, and beta (S - R) of the plain path for each run; each has its interval."""
    folder, pairs = scored
    table = pd.read_csv(folder / "score/dpo/scores.csv")
    assert list(table.columns[2:7]) == ["reward", "trained", "untrained", "implicit_dpo", "implicit_strong"]
    expected = score_all(load_reward_model(folder / "reward", CPU), pairs, 40, CPU)[:, 0]
    assert np.array_equal(table["trained"].to_numpy(np.float32), expected) and table["reward"].equals(table["trained"])
    policy, reference = (
        load_policy(path, CPU).double() for path in (folder / "preference/dpo/model", suite / "sft/model")
    )
    ratio = (naive_logprobs(policy, pairs).total - naive_logprobs(reference, pairs).total)[:, 0]
    for run, beta in BETAS.items():
        assert table[f"implicit_{run}"].to_numpy() == pytest.approx((beta * ratio).numpy(), abs=1e-4)
    summary = json.loads((folder / "score/dpo/summary.json").read_text())
    entry = summary["implicit_strong"]
    assert (
        entry["mean"] == pytest.approx(table["implicit_strong"].mean()) and entry["low"] < entry["mean"] < entry["high"]
    )


@torch.no_grad()
def test_the_implicit_reward_is_evaluated_on_what_was_held_out(suite: Path, scored: tuple[Path, list]) -> None:
    """The share of ordered pairs whose beta (S - R) is ranked right, counted one by one."""
    folder, _ = scored
    store = Store.open(suite / "prepare/comparisons/test")
    held_out = [store[index] for index in range(len(store))]
    policy, reference = (
        load_policy(path, CPU).double() for path in (folder / "preference/dpo/model", suite / "sft/model")
    )
    reward = 0.1 * (naive_logprobs(policy, held_out).total - naive_logprobs(reference, held_out).total)
    right = [float(row[better] > row[worse]) for row in reward for better, worse in ((0, 1), (0, 2), (1, 2))]
    evaluation = json.loads((folder / "score/dpo/evaluation.json").read_text())["implicit"]
    assert evaluation["accuracy"] == pytest.approx(sum(right) / len(right)) and 0 < evaluation["accuracy"] < 1
    assert evaluation["n"] == 7 and evaluation["mean"] == pytest.approx(reward.mean().item(), abs=1e-4)
    table = pd.read_csv(folder / "score/dpo/held_out.csv")
    assert table[[f"implicit_rank{k}" for k in (1, 2, 3)]].to_numpy() == pytest.approx(reward.numpy(), abs=1e-4)
    assert {"held_out.csv", "evaluation.json"} < set(read_manifest(folder / "score/dpo/manifest.json").content["files"])
