"""Sets of comparisons on which the reward model's accuracy is measured by subset."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from prefdag.config.adapters import ADAPTERS
from prefdag.config.data import Data
from prefdag.schema import Compute, Count, Positive, Section

UNLABELLED = "no label"  # the subset of comparisons that no column names one for
SET = re.compile(r"[A-Za-z0-9][\w.-]*")
SubsetSections = dict[str, tuple[str, ...] | dict[str, Positive]]
Sections = Mapping[str, Sequence[str] | Mapping[str, float]]  # section -> its subsets, or subset -> weight


class RewardSet(Section):
    """Comparisons to measure the reward model on: rows of their own, or without `source` the suite's test split."""

    source: str | None = Field(
        None, description="`hub:owner/name`, an http(s) address, a local folder, or a local file; none: the test split"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub repository")
    sha256: str | None = Field(None, description="of the file behind an address, or of a local file")
    file: str | None = Field(None, description="file or glob inside the source")
    max_rows: Count | None = None
    columns: dict[str, str] = Field({}, description="name that the adapter reads: column of the rows")
    adapter: str = Field("pairs", description="how these rows are read; `pairs` reads prompt, chosen and rejected")
    subset: tuple[str, ...] = Field(
        (), description="columns that name each row's subsets: a text, a list of texts, or an object of true and false"
    )
    sections: SubsetSections = Field(
        {},
        description="section: its subsets, pooled, or an object of subset: weight. Their accuracies, and the mean over "
        "sections, are further lines",
        exclude_if=lambda value: not value,
    )

    @field_validator("subset", mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("adapter")
    @classmethod
    def _pairs(cls, name: str) -> str:
        known = [adapter for adapter, info in ADAPTERS.items() if not info.single]
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)}, got {name!r}")
        return name

    @model_validator(mode="after")
    def _sections_have_subsets(self) -> "RewardSet":
        if self.sections and not self.subset:
            raise ValueError("sections: they group the subsets that a column names; state the column in `subset`")
        for name, subsets in self.sections.items():
            if not subsets:
                raise ValueError(f"sections.{name}: no subset in it; name some, or remove the section")
            if twice := sorted({one for one in subsets if [*subsets].count(one) > 1}):
                raise ValueError(f"sections.{name}: names {', '.join(twice)} twice; remove one")
        return self

    @model_validator(mode="after")
    def _is_read(self) -> "RewardSet":
        if self.source is None:
            for key in ("revision", "sha256", "file", "max_rows", "columns"):
                if getattr(self, key):
                    raise ValueError(f"{key}: belongs to rows of their own; state their `source`, or remove it")
        elif self.source in ("world", "mixed"):
            raise ValueError(f"source: {self.source} holds no comparisons by itself; name a file, a folder or the Hub")
        else:
            try:
                self.rows()
            except ValidationError as error:
                sentence = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                raise ValueError(sentence.replace("train", "file", 1)) from None
        return self

    def rows(self) -> Data:
        """Return what to fetch: the rows as the split `train` of a source. They must have a `source`."""
        keys = {"source", "revision", "sha256", "max_rows", "columns"}
        return Data(**self.model_dump(include=keys), train=self.file)


def _named(sets: dict[str, RewardSet]) -> dict[str, RewardSet]:
    for name in sets:
        if not SET.fullmatch(name):
            raise ValueError(f"{name!r}: a set's name names a folder; use letters, digits, `.`, `_` and `-`")
    return sets


RewardSets = Annotated[dict[str, RewardSet], AfterValidator(_named)]


class Evaluation(Compute):
    """What a job of `evaluate_reward` reads."""

    subset: tuple[str, ...] = ()
    sections: SubsetSections = Field({}, exclude_if=lambda value: not value)
    tokens_per_batch: Count = 4096
