"""The job that maps the hidden states of responses, `report.hidden_map`."""

from typing import Any

from prefdag.config.suite import Suite

STAGE = "hidden_map"


def map_config(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of the job."""
    score = suite.score
    shared = {"seed": score.seed, "threads": score.threads, "tokens_per_batch": score.tokens_per_batch}
    return {"hidden_map": {"max_pairs": suite.report.hidden_map, **shared}}


def map_inputs(suite: Suite, name: str) -> dict[str, list[str]]:
    """Return the folders that the job reads; a fetched reward model reads other tokens, so it is left out."""
    is_trained = suite.reward is not None and suite.reward.source is None
    return {
        "policy": ["sft"],
        "comparisons": ["prepare/comparisons"],
        "reward": ["reward"] if is_trained else [],
    }
