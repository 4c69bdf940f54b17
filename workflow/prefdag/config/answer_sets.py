"""Name sets of answers: whose they are, and how they were sampled."""

import re
from dataclasses import dataclass
from pathlib import Path

CHOSEN = "chosen"  # in place of a policy: the best responses of the data, scored like any other answers
POOL = "pool"  # the variant with many samples per prompt that Best-of-N selects from
STEP = re.compile(r"step(\d+)")


@dataclass(frozen=True)
class AnswerSet:
    """One set of answers, as folders and tables name it.

    `dpo` are a run's own answers, `dpo@cold` those of the variant `cold`, `dpo@step50` those of the checkpoint at step
    50, `sft@pool` the samples for Best-of-N, and `chosen` the best responses of the data.
    """

    policy: str
    variant: str = ""
    step: int | None = None

    @classmethod
    def parse(cls, name: str) -> "AnswerSet":
        """Parse the name of a folder, such as `dpo@step50`."""
        policy, _, suffix = name.partition("@")
        step = STEP.fullmatch(suffix)
        return cls(policy, step=int(step[1])) if step else cls(policy, suffix)

    def __str__(self) -> str:
        return f"{self.policy}@{self.suffix}" if self.suffix else self.policy

    @property
    def suffix(self) -> str:
        """What follows the `@`: the variant, `step<step>`, or nothing."""
        return self.variant if self.step is None else f"step{self.step}"

    @property
    def is_chosen(self) -> bool:
        """Whether these are responses of the data, which no policy sampled."""
        return self.policy == CHOSEN

    @property
    def is_pool(self) -> bool:
        return self.variant == POOL


def weights_of(manifest: Path, step: int | None = None) -> Path:
    """Return the folder of a policy's weights: the final ones, or the checkpoint saved at a step."""
    return manifest.parent / ("model" if step is None else f"checkpoints/{step}")
