"""Settings of on-policy training: the section `online`, which its rows override."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.config.sections.preference import Preference
from prefdag.config.user_paths import FORM, split_path
from prefdag.schema import Count, NonNegative, Positive, Section

IMPLICIT, JUDGE = "implicit:", "judge:"
IMPORTANCE_CAP = 2.0  # with vLLM
TRUNCATION_BIAS = (
    "top_p and top_k sample from another policy than the one whose log-probs are optimised: tokens that they leave out "
    "are never sampled, and the others too often"
)


class KL(Section):
    """The penalty for leaving the reference, per token.

    With a target the coefficient starts at `coefficient` and follows the measured sequence KL (Ziegler et al. 2019).
    """

    coefficient: NonNegative = 0.05
    where: Literal["reward", "loss"] = Field("reward", description="part of the reward, or a term of the loss")
    estimator: Literal["k1", "k2", "k3", "ratio_k3", "full"] = Field(
        "k1", description="k1 in the reward has pi* as its optimum; `full` sums over the vocabulary"
    )
    target: Positive | None = Field(None, description="nats per response that the coefficient is adapted to")
    horizon: Count = Field(10_000, description="responses after which an error of 20% has changed it by 20%")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, values: Any) -> Any:
        """Accept a number, or {target, init, horizon}."""
        if isinstance(values, (int, float, str)) and not isinstance(values, bool):
            return {"coefficient": values}
        if values is None:
            raise ValueError("expected a number (0: no penalty) or keys and values, got null")
        if isinstance(values, dict):
            values = dict(values)
            if values.get("target") is not None and "coefficient" not in values:
                values["coefficient"] = values.pop("init", 0.15)
            if values.get("where") == "loss":
                values.setdefault("estimator", "k3")
        return values

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator: k1 in the loss is no penalty: its expected gradient is zero, and the policy runs to the "
                "largest reward; say `where: reward`, or estimator k2, k3, ratio_k3 or full"
            )
        if self.where == "reward" and self.estimator == "ratio_k3":
            raise ValueError("estimator: ratio_k3 is k3 in the reward, where the ratio is 1; say k3, or `where: loss`")
        if self.target is not None and not self.coefficient:
            raise ValueError("coefficient: 0 cannot be adapted to the target; state a number above 0")
        if self.target is None and self.horizon != type(self).model_fields["horizon"].default:
            raise ValueError("horizon: read with a target alone; state `target`, or leave it out")
        return self


class MissingEnd(Section):
    """What happens to a response that was cut before its end-of-turn."""

    penalty: NonNegative = Field(1.0, description="a number above 0 lowers the score")
    how: Literal["subtract", "replace", "mask"] = Field(
        "subtract", description="score - penalty, or -penalty in its place; mask: the response trains nothing"
    )

    @model_validator(mode="after")
    def _penalty_is_read(self) -> Self:
        if self.how == "mask" and self.penalty != type(self).model_fields["penalty"].default:
            raise ValueError("penalty: `how: mask` does not read it, the response trains nothing; leave it out")
        return self


class Online(Preference):
    """On-policy training: each step is a round of sampling, scoring and updates. Dropout is always off."""

    batch_size: Count = Field(64, description="prompts per round, over all devices")
    epochs: Count = Field(1, description="passes over a round's responses")  # type: ignore[assignment]
    max_steps: Count = Field(100, description="rounds")  # type: ignore[assignment]
    schedule: Literal["cosine", "linear", "constant"] = Field("linear", description="of the learning rate, by round")
    tokens_per_batch: Count = Field(8192, description="padded tokens of one forward; decides speed and memory only")
    samples: Count = Field(1, description="responses per prompt; default: the method's, 1, 4 or 8")
    minibatches: Count = Field(1, description="updates per pass")
    max_new_tokens: Count = 128
    temperature: Positive = Field(1.0, description="of sampling, and of the log-probs that are optimised")
    sampling_batch_size: Count = Field(256, description="responses sampled at a time; decides speed and memory")
    reward: str = Field(
        "ground_truth",
        description="ground_truth (the suite's score.reward), a ground truth's name, trained (the reward model), "
        "implicit:<run>, a function of yours as file.py:function, or of a pair loss judge:<name> of judge.judges",
    )
    kl: KL = Field(KL(), description="a coefficient, {target, init, horizon} or {coefficient, where, estimator}")
    labels: Literal["bradley_terry", "soft", "hard"] | None = Field(
        None,
        description="of a pair loss: which of two responses is preferred is chosen with probability s(r1 - r2), "
        "weighted by it, or the larger score; hard labels have no interior optimum",
    )
    normalise_rewards: Literal["off", "scale", "standard"] = Field(
        "off", description="divide scores by their running deviation; standard: subtract their running mean first"
    )
    missing_eos: MissingEnd | None = Field(None, description="what a response without end-of-turn gets")
    sample_table: int = Field(4, ge=0, description="fixed prompts whose answers are recorded as training goes")
    top_p: float = Field(1.0, gt=0, le=1, description="below 1 needs `truncated_sampling: biased`")
    top_k: Count | None = Field(None, description="sample among so many tokens; needs `truncated_sampling: biased`")
    truncated_sampling: Literal["biased"] | None = Field(
        None, description="permit top_p and top_k: tokens that they leave out are never learned about"
    )
    sampler: Literal["torch", "vllm"] = Field(
        "torch", description="`vllm`, if installed; it reads the policy's weights from disk in every round"
    )
    importance_cap: Positive | None = Field(
        None,
        description="weigh the policy gradient by p / p_sampler, at most this; default: 2 with vllm, else no weights",
    )

    @field_validator("reward")
    @classmethod
    def _is_a_reward(cls, reward: str) -> str:
        names = ("ground_truth", "trained", *GROUND_TRUTHS)
        if reward in names or FORM.fullmatch(reward):
            return reward
        if any(reward.startswith(prefix) and reward != prefix for prefix in (IMPLICIT, JUDGE)):
            return reward
        raise ValueError(
            f"expected one of {', '.join(names)}, implicit:<run>, judge:<name> or <file>.py:<function>, got {reward!r}"
        )

    @field_validator("group")
    @classmethod
    def _rounds_have_prompts(cls, group: str | None) -> str | None:
        if group is not None:
            raise ValueError("an on-policy round takes whole prompts already; remove it")
        return group

    @model_validator(mode="before")
    @classmethod
    def _weighted_with_vllm(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sampler") == "vllm" and values.get("labels") is None:
            return {"importance_cap": IMPORTANCE_CAP, **values}
        return values

    @model_validator(mode="after")
    def _truncation_is_asked_for(self) -> Self:
        if self.truncates and self.truncated_sampling is None:
            raise ValueError(
                f"{'top_k' if self.top_p == 1 else 'top_p'}: {TRUNCATION_BIAS}; say `truncated_sampling: biased` to "
                "train with this bias, or lower the temperature instead"
            )
        if not self.truncates and self.truncated_sampling is not None:
            raise ValueError("truncated_sampling: read with top_p below 1 or top_k alone; leave it out")
        return self

    @model_validator(mode="after")
    def _sampler_takes_it(self) -> Self:
        if self.sampler == "vllm" and self.temperature < 0.01:
            raise ValueError(f"temperature: vllm would take 0.01 for {self.temperature:g}; state at least 0.01")
        if self.labels is not None and self.importance_cap is not None:
            raise ValueError("importance_cap: a pair loss has no policy gradient to weigh; leave it out")
        return self

    @model_validator(mode="after")
    def _is_replicated(self) -> Self:
        if self.sharding == "sharded":
            raise ValueError(
                "sharding: on-policy training shares rounds over processes; each holds the whole model; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _adapter_has_no_dropout(self) -> Self:
        if self.adapter is not None and self.adapter.dropout:
            raise ValueError("adapter.dropout: the sampling policy has none, so on-policy training takes 0; remove it")
        return self

    def resolved(self, ground_truth: str) -> Self:
        """Return the settings with the suite's ground truth, `score.reward`, by its name."""
        return self.model_copy(update={"reward": ground_truth}) if self.reward == "ground_truth" else self

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be sampled."""
        return self.top_p < 1 or self.top_k is not None

    @property
    def user_reward(self) -> tuple[Path, str] | None:
        """Return file and function of a user's reward."""
        return split_path(self.reward) if ".py:" in self.reward else None

    @property
    def judge(self) -> str | None:
        """Return the name of the judge that labels pairs."""
        return self.reward.removeprefix(JUDGE) if self.reward.startswith(JUDGE) else None

    @property
    def implicit_run(self) -> str | None:
        """Return the run whose implicit reward is optimised."""
        return self.reward.removeprefix(IMPLICIT) if self.reward.startswith(IMPLICIT) else None

    def shown_options(self) -> dict[str, Any]:
        """Return what distinguishes rows of one method in the report, next to the method's options."""
        reward: dict[str, Any] = {} if self.reward == "ground_truth" else {"reward": self.reward}
        truncation = {"top_p": self.top_p if self.top_p < 1 else None, "top_k": self.top_k}
        reward |= {name: value for name, value in truncation.items() if value is not None}
        if self.labels is not None:
            return {"labels": self.labels, **reward}
        target = {"kl_target": self.kl.target} if self.kl.target else {"kl": self.kl.coefficient}
        return {**target, "samples": self.samples, **reward}

    @property
    def reads_reference(self) -> bool:
        """Whether the reference is part of the objective."""
        return self.labels is not None or self.kl.coefficient > 0

    def user_files(self) -> tuple[Path, ...]:
        return (self.user_reward[0],) if self.user_reward else ()
