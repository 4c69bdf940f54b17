"""Name sets of answers: whose they are, and how they were sampled."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHOSEN = "chosen"  # in place of a policy: the best responses of the data, scored like any other answers
POOL = "pool"  # the variant with many samples per prompt that Best-of-N selects from
VALIDATION = "validation"  # the variant that answers validation prompts, of candidates and of SFT
NUMBERED = re.compile(r"(step|round|samples)(\d+)")


@dataclass(frozen=True)
class AnswerSet:
    """One set of answers, as folders and tables name it.

    `dpo` are a run's own answers, `dpo@cold` those of the variant `cold`, `dpo@step50` those of the checkpoint at step
    50, `dpo@round2` those of the policy after round 2, `sft@pool` the samples for Best-of-N, and `chosen` the best
    responses of the data. `dpo@samples2` are what round 2 draws at training prompts.
    """

    policy: str
    variant: str = ""
    step: int | None = None
    round: int | None = None
    samples: int | None = None

    @classmethod
    def parse(cls, name: str) -> "AnswerSet":
        """Parse the name of a folder, such as `dpo@step50`."""
        policy, _, suffix = name.partition("@")
        numbered = NUMBERED.fullmatch(suffix)
        numbers: dict[str, Any] = {numbered[1]: int(numbered[2])} if numbered else {}
        return cls(policy, **numbers) if numbered else cls(policy, suffix)

    def __str__(self) -> str:
        return f"{self.policy}@{self.suffix}" if self.suffix else self.policy

    @property
    def suffix(self) -> str:
        """What follows the `@`: the variant, a kind with its number such as `step50`, or nothing."""
        numbers = {"step": self.step, "round": self.round, "samples": self.samples}
        return next((f"{kind}{number}" for kind, number in numbers.items() if number is not None), self.variant)

    @property
    def is_chosen(self) -> bool:
        """Whether these are responses of the data, which no policy sampled."""
        return self.policy == CHOSEN

    @property
    def is_checkpoint(self) -> bool:
        """Whether a policy gave these before the end of its run: at a step, or after a round."""
        return self.step is not None or self.round is not None

    @property
    def is_pool(self) -> bool:
        return self.variant == POOL


def weights_of(manifest: Path, step: int | None = None) -> Path:
    """Return the folder of a policy's weights: the final ones, or the checkpoint saved at a step."""
    return manifest.parent / ("model" if step is None else f"checkpoints/{step}")
