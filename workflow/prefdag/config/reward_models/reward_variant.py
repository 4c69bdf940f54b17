"""The configs and inputs of the jobs that train further reward models, `reward.variants`."""

from typing import Any

from prefdag.config.suite import Suite

STAGE = "reward_variant"


def variants_of(suite: Suite) -> list[str]:
    """Return the folders of the further reward models."""
    return [f"{STAGE}/{name}" for name in (suite.reward.variants if suite.reward else ())]


def variant_config(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a further reward model."""
    assert suite.reward is not None
    return {"reward": suite.reward.variant(str(name)).as_job()}


PARTS = {STAGE: variant_config}
