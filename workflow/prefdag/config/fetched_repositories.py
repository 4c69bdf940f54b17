"""The Hub repositories that the jobs of `fetch` read."""

from prefdag.config.hub_lock import Repository, repositories
from prefdag.config.reward_models.reward_set_jobs import rows_of
from prefdag.config.suite import Suite


def repositories_of(suite: Suite, name: str) -> list[Repository]:
    """Return the Hub repositories that one job of `fetch` reads. name: what it fetches."""
    model = suite.model if name in ("model", "tokenizer") else None
    classifier = suite.classifier if name == "classifier" else None
    reward = suite.reward.origin if suite.reward and name == "reward" else None
    return repositories(rows_of(suite, name), model, classifier, reward=reward)
