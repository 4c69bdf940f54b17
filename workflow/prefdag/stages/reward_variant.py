"""Train a further reward model: other settings, another seed, or the other half of the comparisons.

INPUTS   SFT policy, comparisons
OUTPUTS  those of the stage `reward`
"""

from pathlib import Path
from typing import Any

from prefdag.config.sections.reward import Reward
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.stages.reward import open_stores, train_reward_model


class Job(Section):
    """The keys of `--config`."""

    reward: Reward


def run(job: Job, workspace: Workspace, *, policy: Path, comparisons: Path) -> dict[str, Any]:
    """Train a further reward model, as the stage `reward` does.

    Args:
        job: the config of a reward model.
        workspace: where to write, and the journal.
        policy: manifest of the SFT policy.
        comparisons: manifest of the comparisons' token stores.

    Raises:
        UserError: if the comparisons lack what an option needs.
    """
    workspace.log_model_input("policy", "sft")
    stores = open_stores(workspace, comparisons)
    return train_reward_model(job.reward, workspace, policy, stores, title=f"reward-{workspace.name}")
