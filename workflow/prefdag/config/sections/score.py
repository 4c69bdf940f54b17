"""Rewards, KL and text statistics of generations."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.config.user_paths import relative_path, split_path
from prefdag.schema import Compute, Count

METRICS = ("length", "ended", "distinct1", "distinct2", "repetition")  # columns of scores.csv, of each answer's text
_CHOICES = " or ".join(f"`{name}`" for name in GROUND_TRUTHS)
# Columns of scores.csv, runs.csv and answers.csv, which a metric of the user's cannot be called.
TAKEN = re.compile(
    r"(?i:implicit_.*|.*_(low|high|se)|reward\w*|trained\w*|untrained|kl|k1|k3"
    r"|prompt_id|sample|prompt|response|run|method|seed|objective|num_prompts|num_generations|group|label|display"
    r"|win_rate|answers|variant|prompts|step|temperature|top_p|max_new_tokens"
    rf"|{'|'.join((*METRICS, *GROUND_TRUTHS))})"
)


class Score(Compute):
    """What `reward` means in this suite, and the bootstrap of the intervals."""

    reward: Literal[(*GROUND_TRUTHS, "trained")] = Field(  # type: ignore[valid-type]
        "trained",
        description=f"the headline reward: ground truth ({_CHOICES}), or the reward model (`trained`); default: the "
        "suite's `classifier`, `vader` in the embedded world, else `trained`",
    )
    implicit: tuple[str, ...] = Field(
        (), description="runs whose implicit reward, beta times the log-ratio to SFT, scores every generation as well"
    )
    metrics: tuple[str, ...] = Field(
        (),
        description="further columns: functions of yours, `<file>.py:<function>`, of prompts and responses",
    )
    tokens_per_batch: Count = 4096
    bootstrap: Count = Field(1000, description="resamples of the prompts for each interval")

    @field_validator("metrics")
    @classmethod
    def _are_functions(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for metric in metrics:
            name = split_path(metric)[1]
            if TAKEN.fullmatch(name):
                raise ValueError(f"a column called {name} exists; give the function of {metric} another name")
            if name in names:
                raise ValueError(f"two functions are called {name}; give one another name")
            names.append(name)
        return metrics

    def user_files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(split_path(metric)[0] for metric in self.metrics))


def with_relative_paths(values: Any, suite: str) -> Any:
    """Make the paths of metrics, relative to the suite's file, relative to the working directory."""
    if not isinstance(values, dict) or not isinstance(values.get("metrics"), list):
        return values
    return {**values, "metrics": [relative_path(metric, suite) for metric in values["metrics"]]}
