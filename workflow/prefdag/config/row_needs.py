"""What a suite needs of its sections, of its rows, as far as their adapters show, and of prompts that are held out."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from prefdag.config.adapters import RANKED, SCORED, adapter_info
from prefdag.config.data import Data
from prefdag.config.generate import check_prompts
from prefdag.config.model import Origin
from prefdag.config.prepare import Prepare
from prefdag.config.runs import Run
from prefdag.config.sections.run_names import check_names, meant
from prefdag.config.sections.score import METRICS
from prefdag.config.selection.select_jobs import VALIDATION_NAME
from prefdag.config.user_paths import split_path
from prefdag.errors import Mistakes, UserError

SINGLES = "hold one labelled response each"


def lacking(run: Run, adapters: Sequence[str], fetched: Origin | None = None) -> str | None:
    """Return what a run needs that its data or its reward model will not have.

    Args:
        run: the run.
        adapters: of the suite's comparisons; none if they are sampled.
        fetched: where the reward model comes from, if it is not trained here.
    """
    if fetched and getattr(run.objective, "value_from", "") == "reward":
        return "value_from: the reward model of reward.source has tokens of its own; say `value_from: policy`"
    if fetched and run.rounds and run.rounds.discriminator:
        return "discriminator: trains the suite's reward model, and reward.source names one that is fetched; remove it"
    if run.rounds:
        return None  # its own pairs have two scored responses
    method, entry = run.objective.method, run.objective
    if run.online is None and entry.responses != "one" and (adapter := single_adapter(adapters)):
        return (
            f"method: {method} compares responses, and rows of the adapter `{adapter}` {SINGLES}; take a loss of "
            "single responses such as kto or bco, or give pairs"
        )
    if run.dataset == "rankings" and entry.responses == "two":
        return f"dataset: {method} takes two responses, a ranking has more; leave `dataset` out"
    if run.dataset == "rankings" and (adapter := _without(adapters, "ranked")):
        held = "one labelled response" if adapter_info(adapter).single else "two responses"
        return (
            f"dataset: rows of the adapter `{adapter}` hold {held}; sample rankings by the section `pairs`, "
            f"or give rows of more responses to one of the adapters {', '.join(RANKED)}"
        )
    if "scores" in entry.reads and (adapter := _without(adapters, "scored")):
        return (
            f"method: {method} reads scores, and rows of the adapter `{adapter}` have none; sample and score "
            f"responses by the section `pairs`, or give rows with scores to one of the adapters {', '.join(SCORED)}"
        )
    return None


def check_single(adapters: Sequence[str], has_reward: bool, chosen: Iterable[str]) -> None:
    """Check that nothing reads a better and a worse response of rows that hold one.

    Args:
        adapters: of the suite's comparisons; none if they are sampled.
        has_reward: whether a reward model is trained.
        chosen: keys of the suite that ask for the chosen responses as answers.

    Raises:
        UserError: something does, or single responses are mixed with others.
    """
    if (adapter := single_adapter(adapters)) is None:
        return
    if other := next((name for name in adapters if adapter_info(name).single is False), None):
        raise UserError(
            f"data.sources: rows of the adapter `{adapter}` {SINGLES}, those of `{other}` do not; train on one of the "
            "two in each suite"
        )
    if has_reward:
        raise UserError(
            f"reward: a reward model compares responses, and rows of the adapter `{adapter}` {SINGLES}; leave the "
            "section `reward` out, and name a ground truth as score.reward"
        )
    if key := next(iter(chosen), None):
        raise UserError(
            f"{key}: rows of the adapter `{adapter}` {SINGLES}, so a prompt may have no good one; leave the key out"
        )


def single_adapter(adapters: Iterable[str]) -> str | None:
    """Return an adapter whose rows hold single labelled responses, if there is one."""
    return next((adapter for adapter in adapters if adapter_info(adapter).single), None)


def _without(adapters: Iterable[str], kind: Literal["ranked", "scored"]) -> str | None:
    """Return an adapter whose rows are not `ranked` or `scored`, if there is one."""
    return next((adapter for adapter in adapters if not getattr(adapter_info(adapter), kind)), None)


def check_unseen(prepare: Prepare, data: Data, has_pairs: bool, has_demonstrations: bool) -> None:
    """Raise `UserError` if `pretrain` and `pairs` do not know which prompts `prepare` holds out of the rows they read.

    Args:
        prepare, data: the suite's sections.
        has_pairs: whether it has the section `pairs`.
        has_demonstrations: whether SFT has data of its own.
    """
    if prepare.unseen is None:
        return
    if not has_pairs or has_demonstrations or data.source == "world":
        raise UserError(
            "prepare.leakage: `unseen` is for pairs that are sampled at the prompts of SFT's own rows; state "
            "`pairs` and no `sft.data`, or `drop` (the prompts of the embedded world are unseen without it)"
        )
    for split in ("validation", "test"):
        has_file = any(getattr(source, split) for source in (*data.sources, data))
        if not has_file and getattr(prepare, f"{split}_fraction") is None:
            raise UserError(f"prepare.{split}_fraction: missing; with leakage `unseen` the share must be stated")


def check_sections(suite: Any, mistakes: Mistakes) -> None:
    """Check that sections of a suite fit together, whatever its runs read.

    Args:
        suite: the suite. What reads an `Unparsed` section is not checked.
        mistakes: receives a sentence for what does not fit.
    """
    is_wrong = {
        "pretrain: missing; a model from scratch needs this section": lambda: (
            suite.model.from_scratch and suite.pretrain is None
        ),
        "score.reward: `trained`, so the section `reward` must be there to train it": lambda: (
            suite.score.reward == "trained" and suite.reward is None
        ),
        "evaluate_reward: there is no reward model; state the section `reward`": lambda: (
            suite.evaluate_reward and suite.reward is None
        ),
        "pairs.reward: a reward model trained here needs pairs first; state reward.source": lambda: (
            suite.pairs and suite.pairs.reward == "trained" and not (suite.reward and suite.reward.source)
        ),
        "pairs: missing; the embedded world holds no comparisons, this section samples them": lambda: (
            suite.pairs is None and suite.data.source == "world"
        ),
    }
    for sentence, holds in is_wrong.items():
        mistakes.add(sentence if mistakes.attempt(holds) else "")
    checks = (_check_single, _check_gold, _check_judges, _check_prompts, _check_unseen, _check_variants, _check_select)
    for check in checks:
        mistakes.attempt(check, suite)


def _check_single(suite: Any) -> None:
    asking = {"generate.chosen": suite.generate.chosen, "judge.against": suite.judge.against == "chosen"}
    check_single(suite.adapters, suite.reward is not None, [key for key, asks in asking.items() if asks])


def _check_variants(suite: Any) -> None:
    for name in suite.generate.variants if suite.select else ():
        if VALIDATION_NAME.fullmatch(name):
            raise UserError(
                f"generate.variants.{name}: `select` answers validation prompts by this name; choose another"
            )


def _check_select(suite: Any) -> None:
    if not suite.select or suite.select.criterion != "reward_at_kl":
        return
    for key in ("temperature", "top_p"):
        if getattr(suite.generate, key) != 1:
            raise UserError(
                f"select.criterion: reward_at_kl needs answers at {key} 1, of which the KL is; state generate.{key} in "
                "a variant, or choose win_rate"
            )


def _check_prompts(suite: Any) -> None:
    check_prompts(suite.generate, suite.data, suite.prepare)


def _check_unseen(suite: Any) -> None:
    check_unseen(suite.prepare, suite.data, suite.pairs is not None, suite.sft.data is not None)


def _check_gold(suite: Any) -> None:
    gold = suite.report.gold
    variants = [*suite.reward.variants] if gold and suite.reward else []
    if gold and gold not in variants:
        raise UserError(
            f"report.gold: reward.variants names no {gold!r};{meant(gold, variants) or ' correct one of the two'}"
        )


def _check_judges(suite: Any) -> None:
    """Raise `UserError` if a judge is no column of scores.csv; models and people are checked elsewhere."""
    columns = [one for one in suite.judge.judges if isinstance(one, str)]
    check_names(columns, _columns(suite), "judge.judges", "column", "columns")


def _columns(suite: Any) -> list[str]:
    """Return the columns of scores.csv that every set of answers of a suite has."""
    truths = {suite.score.reward, *(["classifier"] if suite.classifier else [])} - {"trained"}
    models = ["trained", *(f"trained_{name}" for name in suite.reward.variants)] if suite.reward else []
    if suite.reward and suite.reward.source is None:
        models.append("untrained")
    implicit = [f"implicit_{run}" for run in suite.score.implicit]
    of_policies = ["kl", "k1", "k3"] if suite.judge.against == "sft" else []  # the chosen responses have no divergence
    users = [split_path(metric)[1] for metric in suite.score.metrics]
    return ["reward", *sorted(truths), *models, *implicit, *of_policies, *METRICS, *users]
