"""What stops on-policy training: one sentence each, and the state before it is intact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparisons import EOS, tiny, tiny_scorer
from on_policy import ROWS, SETTINGS, counted_token, online_training, state_of
from prefdag.config.online.methods import METHODS, optimum_of
from prefdag.config.online.settings import KL
from prefdag.config.runs import expanded
from prefdag.data.token_store import Comparison
from prefdag.errors import Mistakes, UserError
from prefdag.online.critic import load_critic
from prefdag.online.report import doubts_of, missed_target
from prefdag.online.rewards import Sources, load_scorer
from prefdag.training.checkpoint import Checkpoint


def mistake_of(row: dict[str, Any]) -> str:
    mistakes = Mistakes()
    expanded([{"name": "row", **row}], {}, SETTINGS, "suite.yaml", mistakes)
    with pytest.raises(UserError) as raised:
        mistakes.check()
    return str(raised.value)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"method": "ppo", "kl": {"where": "loss", "estimator": "k1"}}, "k1 in the loss is no penalty"),
        ({"method": "ppo", "kl": {"where": "reward", "estimator": "ratio_k3"}}, "the ratio is 1"),
        ({"method": "ppo", "kl": {"target": 6, "coefficient": 0}}, "coefficient: 0 cannot be adapted to the target"),
        ({"method": "ppo", "kl": {"coefficient": 0.05, "horizon": 5}}, "horizon: read with a target alone"),
        ({"method": "ppo", "kl": None}, "kl: expected a number (0: no penalty) or keys and values, got null"),
        ({"method": "rloo", "missing_eos": {"how": "mask", "penalty": 3}}, "penalty: `how: mask` does not read it"),
        ({"method": "ppo", "dataset": "rankings"}, "an on-policy row takes no dataset"),
        ({"method": "dpo", "online": {"labels": "hard"}, "dataset": "comparisons"}, "row takes no dataset"),
        ({"method": "grpo", "group_size": 8}, "here it is `samples`"),
        ({"method": "rloo", "gamma": 0.9}, "rloo does not read gamma"),
        ({"method": "rloo", "samples": 1}, "state 2 or more"),
        ({"method": "ppo", "top_p": 0.9}, "top_p: top_p and top_k sample from another policy"),
        ({"method": "rloo", "top_k": 50}, "say `truncated_sampling: biased` to train with this bias"),
        ({"method": "dpo", "online": {"labels": "soft", "top_p": 0.5}}, "never sampled, and the others too often"),
        ({"method": "ppo", "truncated_sampling": "biased"}, "read with top_p below 1 or top_k alone"),
        ({"method": "ppo", "sampler": "vllm", "temperature": 0.001}, "vllm would take 0.01"),
        ({"method": "dpo", "online": {"labels": "soft", "importance_cap": 2}}, "no policy gradient to weigh"),
        ({"method": "reinforce", "epochs": 2}, "one update per round"),
        ({"method": "reinforce", "value": "shared"}, "read with baseline: learned"),
        ({"method": "ppo", "reward": "nonsense"}, "expected one of ground_truth"),
        ({"method": "ppo", "labels": "hard"}, "only a pair loss"),
        ({"method": "kto", "online": {"labels": "hard"}}, "kto needs more than the log-probs of two responses"),
        ({"method": "dpo", "online": {"kl": 0.1}}, "a pair loss does not read it"),
        ({"method": "dpo", "online": True}, "expected a mapping"),
        ({"preset": "unknown"}, "expected one of dpo-paper"),
        ({"method": "ppo", "processes": 2, "sharding": "sharded"}, "each holds the whole model; leave it out"),
        ({"method": "ppo", "minibatches": 9}, "5 prompts to share out"),
    ],
)
def test_a_row_that_cannot_be_is_one_sentence(row: dict[str, Any], sentence: str) -> None:
    assert sentence in mistake_of(row)


def test_presets_and_numbers_of_samples() -> None:
    rows = [
        {"name": "a", "preset": "nplus"},
        {"name": "b", "method": "grpo"},
        {"name": "c", "preset": "trl-grpo", "clip": 0.1},
    ]
    nplus, grpo, trl = expanded(rows, {}, {**SETTINGS, "reward": "vader"}, "suite.yaml", Mistakes())
    assert (nplus.online.temperature, nplus.objective.score_at, nplus.online.missing_eos.how) == (
        0.7,
        "after_eos",
        "replace",
    )
    assert nplus.online.reward == "trained" and nplus.online.kl.coefficient == 0.05
    assert grpo.online.samples == 8 and trl.objective.clip == 0.1 and not trl.online.reads_reference


def test_every_method_states_its_optimum() -> None:
    assert all(entry.optimum and entry.formula and entry.paper for entry in METHODS.values())


def test_a_plan_names_settings_without_interior_optimum() -> None:
    """Hard labels, no KL at all, k3 in the loss; not PPO with k1 in the reward."""
    doubtful = [
        {"method": "dpo", "online": {"labels": "hard"}},
        {"method": "ppo", "kl": 0},
        {"method": "dr_grpo", "kl": {"where": "loss"}},
        {"method": "ppo"},
    ]
    rows = [{"name": f"row{number}", **row} for number, row in enumerate(doubtful)]
    runs = expanded(rows, {}, SETTINGS, "suite.yaml", Mistakes())
    warnings = [optimum_of(run.objective, run.online).warning for run in runs]
    assert ["hard labels" in warnings[0], "coefficient 0" in warnings[1], "forward KL" in warnings[2]] == [True] * 3
    assert warnings[3] == ""


def scorer_that(values: Any) -> Any:
    """Scores two rounds well, then returns `values` of the scores."""
    calls = []

    def score(compared: Any) -> Any:
        calls.append(1)
        scores = counted_token(compared)
        return values(scores) if len(calls) > 2 else scores

    return score


def with_nan(scores: np.ndarray) -> np.ndarray:
    return np.where(np.arange(scores.size).reshape(scores.shape) == 3, np.nan, scores)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (with_nan, "sample 0 of the round's prompt 3 as nan"),
        (lambda scores: scores[:2], "returned 2 scores for 5 responses"),
    ],
)
def test_a_reward_that_fails_stops_with_a_sentence_and_resumes(values: Any, sentence: str, tmp_path: Path) -> None:
    """In round 2 (the table of answers takes a call of its own); with the reward fixed all is as without."""
    row = {**ROWS["ppo"], "sample_table": 1}
    whole = online_training(row)
    expected = list(whole.rounds())
    failing = online_training(row, Checkpoint(tmp_path, seconds_between=0), scorer=scorer_that(values))
    with pytest.raises(UserError, match=sentence):
        list(failing.rounds())
    resumed = online_training(row, Checkpoint(tmp_path, seconds_between=0))
    assert list(resumed.rounds()) == expected
    assert all(torch.equal(value, state_of(whole)[key]) for key, value in state_of(resumed).items())


@pytest.mark.parametrize("name", ROWS)
def test_a_reward_that_fails_loses_nothing(name: str, tmp_path: Path) -> None:
    """Of every method: the state is saved where it fails, and the rest is as without the failure.

    The call 2 scores round 2, or the table of round 1 after a greedy baseline; of this method 3 and 4 are round 2 and
    its baseline, of PPO 3 is the table.
    """
    whole = online_training(ROWS[name], scorer=FailingAt(None))
    expected, calls = list(whole.rounds()), whole.scorer.calls
    for call in {"reinforce": (2, 3, 4), "ppo": (2, 3)}.get(name, (2,)):
        folder = tmp_path / str(call)
        failing = online_training(ROWS[name], Checkpoint(folder), scorer=FailingAt(call))
        with pytest.raises(
            UserError, match=r"as (nan|inf) \(1 of \d+ scores are not finite\); fix the reward and rerun"
        ):
            list(failing.rounds())
        resumed = online_training(ROWS[name], Checkpoint(folder), scorer=FailingAt(None))
        assert list(resumed.rounds()) == expected and resumed.answers == whole.answers
        assert resumed.scorer.calls <= calls - call + 1  # with a greedy baseline the round is scored again
        assert all(torch.equal(value, state_of(whole)[key]) for key, value in state_of(resumed).items())


class FailingAt:
    """A scorer whose call of this number gives a number that is not finite."""

    def __init__(self, call: int | None) -> None:
        self.call, self.calls = call, 0

    def __call__(self, compared: Any) -> np.ndarray:
        scores = counted_token(compared)
        if self.calls == self.call:
            scores[-1, 0] = (np.nan, np.inf)[self.calls % 2]
        self.calls += 1
        return scores


@pytest.mark.parametrize("name", ["ppo shared", "rloo", "grpo", "online dpo"])
def test_a_gradient_that_is_not_finite_loses_nothing(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """In the second round; the state before the update is saved."""
    whole = online_training(ROWS[name])
    expected = list(whole.rounds())
    failing = online_training(ROWS[name], Checkpoint(tmp_path))
    step = type(failing.optimizers).step
    counts: list[int] = []

    def spoiled(optimizers: Any, *arguments: Any) -> Any:
        counts.append(1)
        if len(counts) == failing.settings.epochs * failing.settings.minibatches + 1:
            next(failing.models.policy.parameters()).grad[0] = torch.nan
        return step(optimizers, *arguments)

    monkeypatch.setattr(type(failing.optimizers), "step", spoiled)
    with pytest.raises(UserError, match="round 2, update 1: policy_grad_norm is nan; lower learning_rate"):
        list(failing.rounds())
    monkeypatch.undo()
    resumed = online_training(ROWS[name], Checkpoint(tmp_path))
    assert list(resumed.rounds()) == expected
    assert all(torch.equal(value, state_of(whole)[key]) for key, value in state_of(resumed).items())


def test_answers_all_alike_train_nothing_and_are_counted() -> None:
    """Equal scores give no advantage to a group; without a KL the policy stays where it is."""
    training = online_training({**ROWS["rloo"], "kl": 0}, scorer=lambda compared: 0 * counted_token(compared) + 1)
    before = {name: value.clone() for name, value in state_of(training).items()}
    records = list(training.rounds())
    assert [one.metrics["groups_without_signal"] for one in records] == [1, 1, 1]
    assert all(torch.equal(value, before[name]) for name, value in state_of(training).items())


def test_a_policy_that_never_ends_is_a_sentence_where_such_answers_are_masked() -> None:
    row = {**ROWS["ppo"], "missing_eos": {"how": "mask"}, "max_new_tokens": 1}
    training = online_training(row)
    training.own_sampler.eos = 49  # a token that is not sampled first
    with pytest.raises(UserError, match="every response of the round was cut"):
        list(training.rounds())


def test_a_policy_that_changed_between_measuring_and_updating_is_noticed() -> None:
    training = online_training(ROWS["ppo"])
    phases = training._phases(0)
    assert [next(phases) for _ in range(3)] == ["sampled", "scored", "measured"]
    for parameter in training.models.policy.parameters():
        parameter.data *= 1.001
    with pytest.raises(UserError, match="first ratio"):
        next(phases)


def test_an_unreachable_target_only_moves_the_coefficient() -> None:
    """Twenty per cent of 5 responses in a horizon of 10: a tenth less each round."""
    row = {**ROWS["ppo"], "kl": {"target": 1e6, "init": 1.0, "horizon": 10}}
    records = list(online_training(row).rounds())
    assert [one.metrics["kl_coefficient"] for one in records] == pytest.approx([1, 0.9, 0.81])
    settings = online_training(row).settings.kl
    missed = missed_target([one.metrics for one in records], settings)
    assert "the target 1e+06; the coefficient went from 1 to 0.81; lower kl.horizon (10), or train longer" in missed


@pytest.mark.parametrize(
    ("last", "target", "sentence"),
    [
        (6, 6, ""),
        (3.1, 6, ""),
        (11.9, 6, ""),
        (2.9, 6, "the KL of the last 3 rounds is 2.9 nats, the target 6"),
        (12.1, 6, "begin with a larger kl.init"),
        (12.1, None, ""),
    ],
)
def test_a_missed_target_is_said_of_the_last_rounds(last: float, target: float | None, sentence: str) -> None:
    """What the KL was before does not count."""
    rounds = [{"kl": value, "kl_coefficient": 0.2} for value in (1000, 1000, last, last, last)]
    missed = missed_target(rounds, KL.parse({"target": target}, "tests"))
    assert sentence in missed and bool(missed) == bool(sentence)


def test_doubts_of_a_training_are_sentences() -> None:
    settings = online_training(ROWS["rloo"]).settings
    rounds = [{"kl": 0.1, "ended": 0.0, "groups_without_signal": 1.0}] * 4
    never, alike = doubts_of(rounds, settings)
    assert never.startswith("no answer of the last 3 rounds ended within max_new_tokens (6); raise it")
    assert alike.startswith("all answers to a prompt had equal scores in the last 3 rounds, so the reward taught")
    assert doubts_of([*rounds, {"kl": 0.1, "ended": 0.2, "groups_without_signal": 0.5}], settings) == []


class Words:
    """A tokenizer whose every token is a letter."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "x" * len(ids)


def test_a_users_reward_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    functions = {"right": "[len(text) for text in responses]", "short": "[0]", "broken": "1 / 0"}
    text = "".join(f"def {name}(prompts, responses):\n    return {value}\n" for name, value in functions.items())
    Path("mine.py").write_text(text)
    compared = [Comparison(np.array([1, 2]), (np.array([3, EOS]), np.array([4])))]

    def score(name: str) -> Any:
        settings = online_training({**ROWS["ppo"], "reward": f"mine.py:{name}"}).settings
        return load_scorer(settings, Sources(), Words(), tiny(), torch.device("cpu"))(compared)

    assert score("right").tolist() == [[2, 1]]
    for name, sentence in {"short": "one number for each", "broken": "ZeroDivisionError", "absent": "no fun"}.items():
        with pytest.raises(UserError, match=sentence):
            score(name)


def test_a_value_head_of_another_width(tmp_path: Path) -> None:
    """A reward model of 16 numbers a position under a policy of 16 fits; one of more heads does not."""
    model = tiny_scorer()
    model.float().save_pretrained(tmp_path / "reward/model")
    method = METHODS["ppo"].parse({"method": "ppo", "value": "shared", "value_from": "reward"}, "tests")
    arguments = (tmp_path, tmp_path / "reward/manifest.json", 0, torch.device("cpu"))
    critic = load_critic(method, tiny(dtype=torch.float32), *arguments)
    assert torch.equal(critic.module.weight, model.score.weight)
    wide = tiny(dtype=torch.float32)
    wide.get_output_embeddings().weight = torch.nn.Parameter(torch.zeros(50, 24))
    with pytest.raises(UserError, match="its head reads 16 numbers, the policy has 24"):
        load_critic(method, wide, *arguments)


@pytest.mark.parametrize(
    "row",
    [
        {"method": "reinforce", "baseline": "learned", "value": "shared"},
        {"method": "reinforce", "baseline": "learned", "value_clip": None},
        {"method": "reinforce", "baseline": "constant", "constant": 0.4},
        {"method": "reinforce", "kl": {"coefficient": 0.1, "where": "reward", "estimator": "k2"}},
        {"method": "rloo", "kl": {"coefficient": 0.1, "where": "loss", "estimator": "k2"}},
        {"method": "grpo", "samples": 3, "aggregation": "dapo"},
        {"method": "grpo", "samples": 3, "aggregation": "bnpo"},
    ],
)
def test_two_rounds_of_every_option(row: dict[str, Any]) -> None:
    """Finite numbers, a first ratio of 1, and weights that move; a value head moves where there is one."""
    training = online_training({"max_steps": 2, **row})
    before = {name: value.clone() for name, value in state_of(training).items()}
    records = list(training.rounds())
    assert len(records) == 2 and all(np.isfinite(list(one.values().values())).all() for one in records)
    assert all(one.metrics["first_ratio_error"] == 0 for one in records)
    moved = {name.split(".")[0] for name, value in state_of(training).items() if not torch.equal(value, before[name])}
    assert moved == {"policy"} | ({"value"} if row.get("baseline") == "learned" else set())


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"method": "rloo", "samples": 1, "labels": "hard", "minibatches": 9}, ["labels", "samples", "minibatches"]),
        ({"method": "ppo", "clip": -1, "betta": 1, "batch_size": 0}, ["betta", "clip", "batch_size"]),
        ({"preset": "none", "batch_size": 0, "seeds": 3}, ["seeds", "preset", "batch_size"]),
        ({"preset": "nplus", "method": "dpo", "batch_size": 0}, ["method", "batch_size"]),
        ({"method": "kto", "online": {"kl": 1, "samples": 3}, "dataset": "x"}, ["dataset", "method", "kl", "samples"]),
    ],
)
def test_all_mistakes_of_a_row_are_said_at_once(row: dict[str, Any], keys: list[str]) -> None:
    lines = mistake_of(row).splitlines()
    assert [line.removeprefix("suite.yaml: runs.row.").partition(":")[0] for line in lines] == keys
