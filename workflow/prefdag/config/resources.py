"""The threads, GPUs and nodes of each job, as the suite states them."""

from typing import Any

from prefdag.config.sections.training import Training
from prefdag.config.suite import ExactSuite, Suite


def threads_of(suite: Suite | ExactSuite, stage: str, name: str | None = None) -> int:
    """Return the threads of one job, from the suite: the number of cores of a machine must not change a sum."""
    if isinstance(suite, ExactSuite):
        return suite.exact.threads
    section = _section(suite, stage, name)
    return int(section.threads) * (section.processes // section.nodes if isinstance(section, Training) else 1)


def resources_of(suite: Suite, stage: str, name: str | None = None) -> dict[str, int | str | None]:
    """Return what a training asks of a cluster: a GPU per process, and one task per node, which the job starts.

    None leaves a resource unstated. By default Slurm would start a task per GPU.
    """
    section = _section(suite, stage, name)
    processes, nodes = (section.processes, section.nodes) if isinstance(section, Training) else (1, 1)
    return {
        "gpu": processes,
        "nodes": nodes,
        "tasks": nodes,
        "tasks_per_gpu": 0 if processes > 1 else None,
        "mpi": "srun" if nodes > 1 else None,
    }


def _section(suite: Suite, stage: str, name: str | None) -> Any:
    """Return the settings of a job, None if the suite has no such stage."""
    if stage in ("preference", "policy", "online") and name:
        return suite.run(name).preference
    return getattr(
        suite,
        {
            "discriminator": "reward",
            "reward_variant": "reward",
            "gold": "score",
            "evaluate_reward": "score",
            "hidden_map": "score",
        }.get(stage, stage),
    )
