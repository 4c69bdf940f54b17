"""The section `sft` of a suite: its training, and rows to learn from that are not the suite's preferences."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from prefdag.config.data import Data
from prefdag.config.prepare import Prepare, known_adapter, known_template, with_relative_paths
from prefdag.config.sections.sft import SFT

UNREAD = ("test", "labelled", "ood")  # splits that no stage reads of SFT's rows


class Demonstrations(Data):
    """Rows that SFT learns from, if they are not those of `data`. SFT reads `train` and `validation`."""

    adapter: str | None = Field(None, description="how these rows are read; default: `prepare.adapter`")
    template: str | None = Field(None, description="how these rows are written; default: `prepare.template`")

    @model_validator(mode="after")
    def _is_read(self) -> "Demonstrations":
        for key, check in (("adapter", known_adapter), ("template", known_template)):
            if (name := getattr(self, key)) is not None:
                try:
                    check(name)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None
        for split in UNREAD:
            if any(getattr(source, split) for source in (*self.sources, self)):
                raise ValueError(f"{split}: nothing reads it; SFT reads train and validation")
        return self

    @property
    def rows(self) -> Data:
        """What to fetch: the section without its adapter and template."""
        return Data(**self.model_dump(exclude={"adapter", "template"}))


class SupervisedTraining(SFT):
    """Next-token prediction on the counted tokens of the first response."""

    data: Demonstrations | None = None

    @model_validator(mode="after")
    def _trains(self) -> "SupervisedTraining":
        if self.data is not None and self.max_steps == 0:
            raise ValueError("data: nothing trains on it while max_steps is 0; remove one of them")
        return self

    def rows_of(self, data: Data, name: str | None) -> Data | None:
        """Return the source of the rows that a job of `fetch` fetches, `data` or `sft_data`; None for a model."""
        return {"data": data, "sft_data": self.data}.get(str(name))

    def prepare(self, prepare: Prepare, dataset: str) -> Prepare:
        """Return the section `prepare` as it holds for a dataset; rows for SFT alone hold no tests out."""
        if self.data is None or dataset != "demonstrations":
            return prepare
        stated = {"adapter": self.data.adapter, "template": self.data.template, "test_fraction": 0.0}
        return prepare.model_copy(update={key: value for key, value in stated.items() if value is not None})


def sft_located(values: Any, suite: str, shared: Mapping[str, Any]) -> Any:
    """Return the section with the paths of `data` relative to the working directory, and the suite's seed in it.

    Args:
        values: the section as stated; what has the wrong type is left for validation.
        suite: the file that states it.
        shared: keys that the suite gives to every section.
    """
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        return values
    seed = {key: value for key, value in shared.items() if key == "seed"}
    return {**values, "data": {**seed, **with_relative_paths(values["data"], suite)}}
