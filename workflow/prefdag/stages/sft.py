"""Supervised fine-tuning: train the SFT policy from the base model and demonstrations."""

from pathlib import Path
from typing import Any

from prefdag.config.sections.sft import SFT
from prefdag.data.token_store import Store
from prefdag.distributed.ranks import is_first
from prefdag.models.loading import add_adapter, load_policy, save, set_up
from prefdag.models.route import route_facts
from prefdag.provenance.links import link_weights
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import total_steps, train
from prefdag.training.records import record_steps
from prefdag.training.supervised_task import mean_nll, supervised_task


class Job(Section):
    sft: SFT


def run(job: Job, workspace: Workspace, *, base: Path, demonstrations: Path) -> dict[str, Any]:
    """Fine-tune the base model on the first response of each demonstration.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        base: manifest of the base model.
        demonstrations: manifest of the demonstrations' token stores.

    Returns:
        Held-out negative log-likelihood in nats per response token, before and after, if rows are held out.
    """
    settings = job.sft
    device = set_up(settings.threads, settings.precision)
    workspace.log_model_input("base", "base")
    workspace.log_dataset("demonstrations", "train", "training")
    store = Store.open(demonstrations.parent / "train")
    held_out = Store.open(demonstrations.parent / "validation")
    model = load_policy(base.parent / "model", device)
    facts = {"nll_before": mean_nll(model, held_out, settings.tokens_per_batch)} if len(held_out) else {}
    add_adapter(model, settings.adapter, settings.seed, base.parent / "model")
    num_steps = total_steps(store, settings)
    if num_steps:
        steps = train(model.train(), store, settings, supervised_task(model, store), Checkpoint(workspace.resume))
        record_steps(steps, num_steps, workspace.journal, workspace.output / "curves.csv", "sft")
        save(model, base.parent / "model", workspace.output / "model")
    elif is_first():
        link_weights(base.parent / "model", workspace.output / "model")
    if facts:
        facts["nll_after"] = mean_nll(model.eval(), held_out, settings.tokens_per_batch)
    workspace.log_model_output("sft", parents=["base"])
    workspace.results({**facts, "steps": num_steps})
    return {**facts, **route_facts(model)}
