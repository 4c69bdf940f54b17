"""The configs and folders of the jobs of rounds; `prefdag.config.rounds` names them."""

from pathlib import Path
from typing import Any

from prefdag.config.answer_sets import AnswerSet
from prefdag.config.rounds import IMPLICIT, JUDGE, Rounds, round_name
from prefdag.config.runs import Run
from prefdag.config.sections.generation import Generation
from prefdag.config.sections.gold import Gold
from prefdag.config.sections.judge import LLM
from prefdag.config.sections.rating import Rating
from prefdag.config.sections.score import Score
from prefdag.config.suite import Suite
from prefdag.config.user_paths import FORM, split_path


def rounds_of(suite: Suite, run: str) -> Rounds:
    """Return the rounds of a run that has some. run: its name, or that of one of its rounds."""
    rounds = suite.run(run).rounds
    assert rounds is not None, run
    return rounds


def start_of_round(run: str, number: int) -> str:
    """Return the stage folder of the policy that a round samples from and trains on."""
    return "sft" if number == 1 else f"preference/{round_name(run, number - 1)}"


def generation_of_samples(suite: Suite, run: str) -> Generation:
    """Return how the rounds of a run sample."""
    return rounds_of(suite, run).pairs.generation(suite.generate, suite.run(run).preference.seed)


def score_of_samples(suite: Suite, run: str) -> Score:
    """Return how the samples of a run's rounds are scored: by the reward that its pairs are made by, and no other."""
    reward = suite.reward_of_rounds(run)
    if reward.startswith(IMPLICIT):
        return suite.score.model_copy(update={"implicit": (reward.removeprefix(IMPLICIT),), "metrics": ()})
    named = {} if user_reward_of(suite, run) else {"reward": reward}
    return suite.score.model_copy(update={"implicit": (), "metrics": (), **named})


def user_reward_of(suite: Suite, run: str) -> str | None:
    """Return the user's function that scores a run's samples, as `file.py:function`."""
    reward = suite.reward_of_rounds(run)
    return reward if FORM.fullmatch(reward) else None


def scoring_of(suite: Suite, run: str) -> dict[str, Any]:
    """Return the config of the jobs that score the samples of a run's rounds."""
    user = user_reward_of(suite, run)
    return {"score": score_of_samples(suite, run), **({"user_reward": user} if user else {})}


def user_files_of_answers(suite: Suite, stage: str, name: str) -> tuple[Path, ...]:
    """Return the user's files that score, rate or label a round's samples, or measure other sets of answers."""
    one = AnswerSet.parse(name)
    if stage == "gold":
        return gold_of(suite, name)["gold"].user_files()
    if stage == "rating":
        return judge_of_samples(suite, one.policy).user_files()
    if one.samples is None:
        return suite.score.user_files()
    user = user_reward_of(suite, one.policy)
    return () if user is None else (split_path(user)[0],)


def is_rated(suite: Suite, run: str) -> bool:
    """Whether a judge compares the samples of a run's rounds, in place of a reward that scores them."""
    return suite.reward_of_rounds(run).startswith(JUDGE)


def judge_of_samples(suite: Suite, run: str) -> LLM:
    """Return the judge that compares the samples of a run's rounds."""
    return suite.judge.model_named(suite.reward_of_rounds(run).removeprefix(JUDGE))


def shown_in_report(suite: Suite, run: Run) -> dict[str, Any]:
    """Return what the report says of a run on its own samples: its optimum, and which stages label them."""
    optimum = {"optimum": run.optimum.sentence} if run.optimum else {}
    if run.rounds is None:
        return optimum
    labelled = ["rating"] if is_rated(suite, run.name) else []
    labelled += ["gold", "discriminator"] if run.rounds.discriminator else []
    return {**optimum, **({"labelled_by": labelled} if labelled else {})}


def judge_of_online(suite: Suite, name: str) -> dict[str, LLM]:
    """Return the judge that labels the pairs of an online run, as a part of its job's config; empty without one."""
    settings = suite.run(name).online
    return {"judge": suite.judge.model_named(settings.judge)} if settings and settings.judge else {}


def method_of_online(suite: Suite, name: str) -> dict[str, Any]:
    """Return what a job of on-policy training reads next to its settings."""
    return {"objective": suite.run(name).objective, **judge_of_online(suite, name)}


def user_files_of_run(suite: Suite, name: str) -> tuple[Path, ...]:
    """Return the user's files that the training of a run reads."""
    judges = judge_of_online(suite, name).values()
    return (*suite.run(name).user_files(), *(path for judge in judges for path in judge.user_files()))


def rating_of(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a round's job of `rating`."""
    return {"rating": Rating(judge=judge_of_samples(suite, AnswerSet.parse(name or "").policy))}


def gold_of(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a round's job of `gold`."""
    one = AnswerSet.parse(name or "")
    by, settings = suite.gold_of_rounds(one.policy), rounds_of(suite, one.policy).discriminator
    assert by is not None and settings is not None
    judge = suite.judge.model_named(by.removeprefix(JUDGE)) if by.startswith(JUDGE) else None
    return {
        "gold": Gold(num_pairs=settings.gold_pairs, by="judge" if judge else by, judge=judge, labels=settings.labels),
        "seed": suite.run(one.policy).preference.seed,
        "round": one.round,
        "threads": suite.score.threads,
    }


def pairing_of(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a round's job of `pairing`."""
    one = AnswerSet.parse(name or "")
    implicit = score_of_samples(suite, one.policy).implicit
    return {
        "pairing": rounds_of(suite, one.policy).pairs.pairing,
        "column": f"implicit_{implicit[0]}" if implicit else "reward",
        "seed": suite.run(one.policy).preference.seed,
        "round": one.round,
    }


def round_of(suite: Suite, answer_set: AnswerSet) -> int:
    """Return the round whose training made the answering policy; 1 for a run without rounds."""
    run = suite.run(answer_set.policy)
    if answer_set.step is not None and run.rounds:
        assert run.preference.max_steps
        return 1 + (answer_set.step - 1) // run.preference.max_steps
    return answer_set.round or (run.rounds.rounds if run.rounds else 1)


PARTS = {  # the configs of the stages that rounds alone have
    "pairing": pairing_of,
    "gold": gold_of,
    "rating": rating_of,
    "discriminator": lambda suite, name: {"reward": suite.reward and suite.reward.as_job()},
}
