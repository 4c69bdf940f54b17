"""Rounds of a run as jobs: which pairs a round draws from its policy, and the names of its jobs.

Round k of the run `dpo` samples (`generate/dpo@samples2`), scores (`score/dpo@samples2`), forms pairs
(`pairing/dpo@round2`), caches the reference (`reference/dpo@round2`) and trains (`preference/dpo@round2`). A judge that
scores has `rating/dpo@samples2` in place of `score`. A run with a discriminator labels some samples (`gold/dpo@round2`)
and trains its reward model (`discriminator/dpo@round2`) before it scores.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from prefdag.config.answer_sets import AnswerSet
from prefdag.config.objectives import Objective
from prefdag.config.sections.discriminator import Discriminator
from prefdag.config.sections.generation import Generation
from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.config.sections.pairing import Pairing
from prefdag.config.user_paths import FORM
from prefdag.errors import UserError
from prefdag.schema import Count, Positive, Section, Seed

MOST = 20  # rounds; each is a chain of jobs that Snakemake parses
READ_BY = {"beta": ("rso",), "keep": ("rso",), "threshold": ("margin",), "labels": ("max_min", "margin", "rso")}
TRUTH, IMPLICIT, JUDGE = "ground_truth", "implicit:", "judge:"


class RoundPairs(Pairing):
    """Pairs of samples of the policy of each round, which a row states as `pairs:`."""

    draws: int | None = Field(None, ge=2, description="samples for each prompt; default: 4, of `rso` 64")
    reward: str | None = Field(
        None,
        description="what scores the samples: `ground_truth`, one of them by its name, `trained`, `implicit:<run>`, "
        "`judge:<name>` of `judge.judges`, which compares the samples of a prompt, or a function of yours as "
        "file.py:function; default: `score.reward`",
    )
    reference: Literal["round", "sft"] = Field(
        "round", description="of the loss: the policy that the round starts from, or SFT in every round"
    )
    max_prompts: Count | None = Field(
        None, description="training prompts of a round, the next ones in each round; default: all in every round"
    )
    temperature: Positive = 1.0
    max_new_tokens: Count | None = Field(None, description="default: that of `generate`")
    batch_size: Count | None = Field(None, description="samples at a time; default: that of `generate`")

    @property
    def num_draws(self) -> int:
        return self.draws or (64 if self.law == "rso" else 4)

    @model_validator(mode="after")
    def _options_are_read(self) -> "RoundPairs":
        for option, laws in READ_BY.items():
            if option in self.model_fields_set and self.law not in laws:
                raise ValueError(f"{option}: the law {self.law} does not read it; leave it out")
        return self

    @model_validator(mode="after")
    def _enough_draws(self) -> "RoundPairs":
        if self.law == "rso" and self.keep > self.num_draws:
            raise ValueError(f"keep: {self.keep} of {self.num_draws} draws cannot be accepted; state more draws")
        return self

    @model_validator(mode="after")
    def _verdicts_are_labels(self) -> "RoundPairs":
        if (self.reward or "").startswith(JUDGE) and self.labels != "hard":
            raise ValueError(
                f"labels: a judge's verdicts are preferences, not scores of a Bradley-Terry model; leave {self.labels} "
                "out"
            )
        return self

    @property
    def pairing(self) -> Pairing:
        return Pairing(**self.model_dump(include=set(Pairing.model_fields)))

    def generation(self, generate: Generation, seed: Seed) -> Generation:
        """Return how a round samples. generate: the suite's settings, of which threads and defaults are taken."""
        return Generation(
            seed=seed,
            threads=generate.threads,
            num_samples=self.num_draws,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens or generate.max_new_tokens,
            batch_size=self.batch_size or generate.batch_size,
            max_prompts=self.max_prompts,
            backend=generate.backend,
        )


class Rounds(Section):
    """The rounds of one run."""

    rounds: int = Field(1, ge=1, description=f"rounds of sampling and training, at most {MOST}")
    pairs: RoundPairs
    discriminator: Discriminator | None = Field(
        None,
        description="a reward model that is trained again in every round, on new gold labels, and scores the pairs",
    )

    @model_validator(mode="before")
    @classmethod
    def _law_alone(cls, values: Any) -> Any:
        """Read `pairs: max_min` as `pairs: {law: max_min}`."""
        pairs = values.get("pairs") if isinstance(values, dict) else None
        return {**values, "pairs": {"law": pairs}} if isinstance(pairs, str) else values

    @model_validator(mode="after")
    def _few(self) -> "Rounds":
        if self.rounds > MOST:
            raise ValueError(
                f"rounds: expected at most {MOST}, got {self.rounds}: each round is a chain of jobs; "
                "train more on each round's pairs, or use a method whose rounds are steps of one job"
            )
        return self

    @model_validator(mode="after")
    def _one_scorer(self) -> "Rounds":
        if self.discriminator and self.pairs.reward is not None:
            raise ValueError("pairs.reward: the row's discriminator scores the samples; leave `reward` out")
        if self.discriminator and self.discriminator.gold.startswith(JUDGE) and self.discriminator.labels != "hard":
            raise ValueError("discriminator.labels: a judge's verdicts are labels themselves; leave `labels` out")
        return self

    def reward(self, headline: str, of_pairs: str | None) -> str:
        """Return what scores the samples: a ground truth, `trained`, `implicit:<run>`, a judge or `file.py:function`.

        Args:
            headline: the suite's `score.reward`.
            of_pairs: the suite's `pairs.reward`, if it has the section.

        Raises:
            UserError: the row names no reward of the suite.
        """
        if self.discriminator:
            return "trained"
        stated = _named(self.pairs.reward or headline, headline, of_pairs)
        if stated.startswith((IMPLICIT, JUDGE)) or stated in (*GROUND_TRUTHS, "trained") or FORM.fullmatch(stated):
            return stated
        known = ", ".join([*GROUND_TRUTHS, "trained", f"{IMPLICIT}<run>", f"{JUDGE}<name>", "<file>.py:<function>"])
        raise UserError(f"pairs.reward: expected one of {known}, got {stated!r}")

    def gold(self, headline: str, of_pairs: str | None) -> str | None:
        """Return what gives gold labels, None without a discriminator; as `reward`, without trained rewards."""
        if self.discriminator is None:
            return None
        stated = _named(self.discriminator.gold, headline, of_pairs)
        if stated.startswith(JUDGE) or stated in GROUND_TRUTHS or FORM.fullmatch(stated):
            return stated
        known = ", ".join([*GROUND_TRUTHS, f"{JUDGE}<name>", "<file>.py:<function>"])
        raise UserError(f"discriminator.gold: expected one of {known}, got {stated!r}")

    def check(self, objective: Objective) -> None:
        """Raise ValueError if the run's loss cannot be trained on these pairs."""
        method, law = objective.method, self.pairs.law
        if objective.responses == "many":
            raise ValueError(f"pairs: {method} takes rankings, and rounds form pairs; choose a loss of two responses")
        if law == "best_of_n" and method != "preferred_ft" and objective.family != "own":
            raise ValueError(
                f"pairs: the law best_of_n keeps the best response alone, and {method} compares two; "
                "use `method: preferred_ft`, or the law max_min"
            )
        if self.pairs.labels == "soft" and not objective.of_pairs_alone:
            raise ValueError(
                f"pairs.labels: {method} needs more than the log-probs of two responses to a prompt, so soft labels "
                "cannot weigh its two orders; say bradley_terry, or take dpo, ipo or another pair loss"
            )
        if "reference" in self.pairs.model_fields_set and not objective.reads & {"reference", "divergence"}:
            raise ValueError(f"pairs.reference: {method} reads no reference; leave it out")


def _named(stated: str, headline: str, of_pairs: str | None) -> str:
    """Return a reward with the suite's ground truth by its name."""
    if stated != TRUTH:
        return stated
    return next((reward for reward in (headline, of_pairs) if reward in GROUND_TRUTHS), TRUTH)


def round_name(run: str, number: int) -> str:
    """Return the name of a round's jobs: `dpo@round2`."""
    return str(AnswerSet(run, round=number))
