"""Train a round's reward model on the comparisons and on the gold labels of all rounds so far (D2PO).

INPUTS   SFT policy, comparisons, gold labels of each round up to this one; the reward model to start from, if any
OUTPUTS  those of the stage `reward`
"""

from pathlib import Path
from typing import Any

from prefdag.config.sections.reward import Reward
from prefdag.data.joined import join_stores
from prefdag.data.token_store import Store
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.stages.reward import open_stores, train_reward_model


class Job(Section):
    """The keys of `--config`."""

    reward: Reward


def run(
    job: Job, workspace: Workspace, *, policy: Path, comparisons: Path, gold: list[Path], start: Path | None = None
) -> dict[str, Any]:
    """Train a reward model.

    Args:
        job: the config of a reward model.
        workspace: where to write, and the journal.
        policy: manifest of the SFT policy.
        comparisons: manifest of the comparisons' token stores.
        gold: manifests of the gold labels of each round.
        start: manifest of the reward model to start from; the SFT policy with new heads without it.

    Returns:
        What the stage `reward` returns, and the number of gold-labelled pairs.

    Raises:
        UserError: if the comparisons lack what an option needs, or the reward model to start from has other heads.
    """
    workspace.log_model_input("policy", "sft")
    if start is not None:
        workspace.log_model_input("start", start.parent.name)
    stores = open_stores(workspace, comparisons)
    labelled = [Store.open(path.parent / "train") for path in gold]
    stores["train"] = join_stores([stores["train"], *labelled])
    title = f"discriminator-{workspace.name or 'round'}"
    facts = train_reward_model(job.reward, workspace, policy, stores, title=title, start=start)
    return {**facts, "gold_pairs": sum(map(len, labelled))}
