"""The jobs of reference caches: one for each dataset and precision, and one for each round of a run."""

from typing import Any

from prefdag.config.answer_sets import AnswerSet
from prefdag.config.suite import Suite


def reads_reference(suite: Suite, run: str) -> bool:
    return "reference" in suite.run(run).objective.reads


def cache_folder(suite: Suite, run: str) -> str:
    """Return the folder of the cache that a run, or a round of one, reads: in the run's precision if it states one."""
    if AnswerSet.parse(run).round is not None:
        return f"reference/{run}"
    precision = suite.run(run).preference.precision
    return f"reference/{suite.run(run).dataset}" + (f"-{precision}" if precision else "")


def cache_config(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the config of a cache: the section, and the precision of the runs that read it if they state one."""
    name = str(name)
    of_round = AnswerSet.parse(name).round is not None
    precision = suite.run(name).preference.precision if of_round else name.partition("-")[2]
    return {"reference": suite.reference, **({"precision": precision} if precision else {})}
