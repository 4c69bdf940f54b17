"""Sets of answers by name: a policy's own, `<policy>@<variant>`, `<run>@step<step>`, `sft@pool`, `chosen`, and
`chosen@<variant>` where a variant answers prompts of another distribution."""

import re
from pathlib import Path

CHOSEN = "chosen"  # the test split's best responses: nobody's answers, scored like any other
POOL = "pool"  # the variant of many samples that Best-of-N picks from
STEP = re.compile(r"step(\d+)")


def policy_of(answers: str) -> str:
    """Whose answers they are."""
    return answers.partition("@")[0]


def variant_of(answers: str) -> str:
    """The variant's name; empty for a policy's own answers, drawn as `generate` says."""
    return answers.partition("@")[2]


def step_of(answers: str) -> int | None:
    """The optimizer step of the checkpoint that answers; None for the weights at the end."""
    found = STEP.fullmatch(variant_of(answers))
    return int(found[1]) if found else None


def weights_of(manifest: Path, checkpoint: int | None = None) -> Path:
    """The folder of weights beside a stage's manifest: of the end, or of the checkpoint kept at a step."""
    return manifest.parent / ("model" if checkpoint is None else f"checkpoints/{checkpoint}")
