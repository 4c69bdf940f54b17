"""Map held-out responses by their hidden states: t-SNE in two dimensions, of the SFT policy and of the reward model.

INPUTS   SFT policy, comparisons; the trained reward model, if there is one
OUTPUTS  map.csv: model, row, prompt, side, x, y of every mapped response
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.models.loading import load_policy, set_up
from prefdag.models.logprobs import hidden_states
from prefdag.models.packing import Segments
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.evaluation import score_all
from prefdag.rewards.model import load_reward_model
from prefdag.runtime.stage import Workspace
from prefdag.schema import Compute, Count, Section

FEWEST = 4  # pairs
PERPLEXITY = 30.0  # scikit-learn's default; less where there are few responses


class HiddenMap(Compute):
    """How many responses are mapped, and in which batches."""

    max_pairs: Count = 200
    tokens_per_batch: Count = 4096


class Job(Section):
    """The keys of `--config`."""

    hidden_map: HiddenMap


def run(
    job: Job, workspace: Workspace, *, policy: Path, comparisons: Path, reward: Path | None = None
) -> dict[str, Any]:
    """Map chosen and rejected held-out responses by the last layer's state at their last token.

    It is the state that a reward model's head reads.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        policy: manifest of the SFT policy.
        comparisons: manifest of the comparisons' token stores.
        reward: manifest of the trained reward model, whose first member is mapped.

    Raises:
        UserError: the test split has too few pairs.
    """
    settings = job.hidden_map
    device = set_up(settings.threads)
    store = Store.open(comparisons.parent / "test")
    if len(store) < FEWEST or store.num_responses != 2:
        raise UserError(f"{store.folder}: a map needs {FEWEST} pairs or more; remove `report.hidden_map`")
    rows = np.unique(np.linspace(0, len(store) - 1, min(len(store), settings.max_pairs)).astype(int)).tolist()
    pairs = [store[row] for row in rows]
    models = {"SFT policy": load_policy(policy.parent / "model", device)}
    if reward is not None:
        read_manifest(reward).check_weights("")
        models["reward model"] = load_reward_model(reward.parent, device).members[0]
    tables = []
    for name, model in models.items():
        states = score_all(partial(last_states, model.eval()), pairs, settings.tokens_per_batch, device)
        points = tsne(states.reshape(len(pairs) * 2, -1), settings.seed).reshape(len(pairs), 2, 2)
        for place, side in enumerate(("chosen", "rejected")):
            about = {"model": name, "row": store.rows[rows], "prompt": store.prompts[rows], "side": side}
            tables.append(pd.DataFrame({**about, "x": points[:, place, 0], "y": points[:, place, 1]}))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(workspace.output / "map.csv", index=False, lineterminator="\n")
    workspace.journal.artifact(workspace.output / "map.csv", "map.csv")
    return {"pairs": len(pairs), "models": list(models)}


def last_states(model: PreTrainedModel, segments: Segments) -> Tensor:
    """Return the last layer's hidden state at the last token of every response, [B, K, D]."""
    states = hidden_states(model, segments, segments.ending)
    return states.float().view(*segments.shape, -1)


def tsne(states: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Return t-SNE of states [N, D] in two dimensions, [N, 2], from their principal components.

    Reference: van der Maaten and Hinton 2008.
    """
    perplexity = min(PERPLEXITY, (len(states) - 1) / 3)
    with threadpool_limits(limits=1):  # the order of BLAS's and OpenMP's sums depends on the number of threads
        analysis = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        points: NDArray[np.float64] = analysis.fit_transform(states.astype(np.float64))
    return points
