"""The configs and inputs of the jobs that measure the reward model by subset.

`fetch/evaluated-<set>` and `prepare/evaluated-<set>` exist for a set with rows of its own; `evaluate_reward/<set>`
measures the reward model on them, or without such rows on the suite's test split.
"""

from typing import Any

from prefdag.config.data import Data
from prefdag.config.reward_models import hidden_map, reward_variant
from prefdag.config.suite import Suite

PREFIX = "evaluated-"


def set_of(name: str | None) -> str | None:
    """Return the set that a job of `fetch` or `prepare` is for; None if it is for none."""
    return name.removeprefix(PREFIX) if name and name.startswith(PREFIX) else None


def rows_of(suite: Suite, name: str | None) -> Data | None:
    """Return the source of the rows that a job of `fetch` fetches; None for a model."""
    if one := set_of(name):
        return suite.evaluate_reward[one].rows()
    return suite.sft.rows_of(suite.data, name)


def further_rows(suite: Suite) -> list[Data]:
    """Return the sources of all sets that have rows of their own."""
    return [one.rows() for one in suite.evaluate_reward.values() if one.source]


def prepare_config(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a job of `prepare`."""
    if one := set_of(name):
        evaluated = suite.evaluate_reward[one]
        prepare = suite.prepare.model_copy(update={"adapter": evaluated.adapter})
        # Checked before any training. `evaluate_reward` reads them again.
        read = {"subset": list(evaluated.subset), "sections": evaluated.sections}
        return {"prepare": prepare, "dataset": "evaluated", **{key: value for key, value in read.items() if value}}
    return {"prepare": suite.sft.prepare(suite.prepare, str(name)), "dataset": name}


def evaluation_config(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a job of `evaluate_reward`."""
    score, one = suite.score, suite.evaluate_reward[str(name)]
    shared = {"seed": score.seed, "threads": score.threads, "tokens_per_batch": score.tokens_per_batch}
    sections = {"sections": one.sections} if one.sections else {}
    return {"evaluation": {"subset": list(one.subset), **sections, **shared}}


def evaluation_inputs(suite: Suite, name: str) -> dict[str, list[str]]:
    """Return the folders that a job of `evaluate_reward` reads, by option."""
    has_rows = suite.evaluate_reward[name].source is not None
    sampled = "pairs" if suite.pairs is not None else "fetch/data"
    return {
        "reward": ["reward"],
        "policy": ["sft"],
        "comparisons": ["prepare/comparisons"],
        "evaluated": [f"prepare/{PREFIX}{name}"] if has_rows else [],
        "rows": [f"fetch/{PREFIX}{name}" if has_rows else sampled],
    }


PARTS = {
    "prepare": prepare_config,
    "evaluate_reward": evaluation_config,
    hidden_map.STAGE: hidden_map.map_config,
    **reward_variant.PARTS,
}
