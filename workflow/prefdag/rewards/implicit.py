"""The implicit reward of a preference-trained policy: beta times its log-ratio to the reference."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.errors import UserError
from prefdag.models.loading import load_policy
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import Segments
from prefdag.provenance.manifest import Manifest


@dataclass(frozen=True)
class ImplicitReward:
    """Rafailov et al. 2023, section 4: beta (log pi(y|x) - log pi_ref(y|x)), the reward that an aligned policy is
    optimal for, without its prompt's constant beta log Z(x)."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    beta: float

    @classmethod
    def of_run(cls, run: Manifest, reference: PreTrainedModel, device: torch.device) -> Self:
        """Load it from a run of the stage `preference`, with the beta of its training.

        Raises:
            UserError: the run's loss has no beta or reads no reference.
        """
        objective = run.content["config"].get("objective", {})
        has_reference = "reference" in run.content["inputs"] or run.content["stage"] == "online"
        if "beta" not in objective or not has_reference:
            raise UserError(f"{run.path}: no implicit reward; name a run whose loss has a beta and reads the reference")
        return cls(load_policy(run.folder / "model", device), reference, float(objective["beta"]))

    def __call__(self, segments: Segments) -> Tensor:
        """Implicit reward of every response: [B, K], float32."""
        return self.beta * (logprobs(self.policy, segments) - logprobs(self.reference, segments)).total
