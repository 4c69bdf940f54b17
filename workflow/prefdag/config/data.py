"""The raw rows: from the Hub, an address, local files, the embedded text world, or a mixture of such sources."""

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from prefdag.config.adapters import ADAPTERS
from prefdag.schema import Count, Positive, Section, Seed

HUB = "hub:"
SPLITS = ("train", "validation", "test", "labelled", "ood")
ADDRESS = re.compile(r"https?://")


class World(Section):
    """Sizes of the embedded world's splits."""

    seed: Seed = 0
    reviews: Count = Field(20000, description="reviews to pre-train and fine-tune on")
    validation_reviews: Count = 500
    train_prompts: Count = 1000
    validation_prompts: Count = 100
    test_prompts: Count = 300


class Source(Section):
    """One source of rows. `train`, `validation`, `test`, `labelled` and `ood` name files (or globs) inside it."""

    source: str = Field(
        description="`world`, `mixed`, `hub:owner/name`, an http(s) address, a local folder, or a local file"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub repository")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of the file behind an address, where it must be stated, or of a local file"
    )
    train: str | None = Field(None, description="file or glob inside the source; a single file is train itself")
    validation: str | None = None
    test: str | None = None
    labelled: str | None = Field(None, description="rows of `text` and `label` that a classifier is trained on")
    ood: str | None = Field(None, description="prompts of another input distribution, with their best response")
    max_rows: Count | None = Field(None, description="read only this many rows of each split")
    columns: dict[str, str] = Field(
        {}, description="name that the adapter reads: column of the rows (`a.b` for b inside a)"
    )
    replace: dict[str, str] = Field(
        {}, description="text: what takes its place in every text of the rows; where several begin, the longest"
    )

    @property
    def named(self) -> dict[str, str]:
        """The files, or globs, of each split that is named."""
        return {split: str(pattern) for split in SPLITS if (pattern := getattr(self, split))}

    @property
    def trains(self) -> bool:
        """Whether training rows are among its own: a file that names no split is train itself."""
        return self.train is not None or not self.named

    @model_validator(mode="after")
    def _files_are_named(self) -> "Source":
        if self.source.startswith(HUB) and not self.named:
            raise ValueError("train: missing; name the file (or glob) of training rows inside the source")
        if ADDRESS.match(self.source) and self.sha256 is None:
            raise ValueError("sha256: missing; a file behind an address must state its own (`sha256sum` prints it)")
        if ADDRESS.match(self.source) and (self.validation or self.test or self.labelled or self.ood):
            raise ValueError(
                "source: an address is one file and holds train alone; mix further sources in for other splits"
            )
        if "" in self.replace:
            raise ValueError("replace: an empty text matches everywhere; name the text to replace")
        return self


class Mixed(Source):
    """One source of a mixture."""

    weight: Positive | None = Field(None, description="share of the mixture's training rows, relative to the others")
    count: Count | None = Field(None, description="training rows sampled from this source")
    adapter: str | None = Field(None, description="if this source's rows need another one than `prepare.adapter`")

    @field_validator("adapter")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in ADAPTERS:
            raise ValueError(f"expected one of {', '.join(ADAPTERS)}, got {name!r}")
        return name


class Data(Source):
    """One source of rows. `train`, `validation`, `test`, `labelled` and `ood` name files (or globs) inside it."""

    seed: Seed = Field(0, description="for the sampling of mixed sources")
    sources: tuple[Mixed, ...] = Field((), description="for `mixed`: a list of sources, each with a weight or a count")
    world: World | None = None

    @model_validator(mode="after")
    def _source_and_sizes_agree(self) -> "Data":
        if self.source == "world" and self.world is None:
            raise ValueError("world: missing; with source `world` it states the sizes")
        if (self.source == "mixed") != bool(self.sources):
            raise ValueError("sources: source `mixed` and this list go together; state both or neither")
        if not self.sources and self.source != "world" and not self.trains:
            raise ValueError("train: missing; name the file (or glob) of training rows inside the source")
        self._check_mixture()
        return self

    def _check_mixture(self) -> None:
        """Each source of training rows has a weight, or each a count; one that holds none of them has neither."""
        if self.sources and not any(source.trains for source in self.sources):
            raise ValueError("sources: none of them holds training rows; name a `train` in one")
        stated = {(source.weight is not None, source.count is not None) for source in self.sources if source.trains}
        if self.sources and stated not in ({(True, False)}, {(False, True)}):
            raise ValueError("sources: state a weight for each of them, or a count for each of them")
        for source in self.sources:
            if not source.trains and (source.weight is not None or source.count is not None):
                raise ValueError(f"sources: {source.source} names no `train`, so its weight or count says nothing")
