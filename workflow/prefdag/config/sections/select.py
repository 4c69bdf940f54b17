"""Choose the settings of each row on validation prompts, from a grid; test prompts see the chosen ones alone."""

from typing import Any, Literal

from pydantic import Field, model_validator

from prefdag.schema import Count, Positive, Section

Criterion = Literal["reward_at_kl", "win_rate", "held_out_accuracy"]
Grid = dict[str, list[Any]]


class Choice(Section):
    """What decides between candidates."""

    criterion: Criterion = Field(
        "reward_at_kl",
        description="`reward_at_kl`: mean reward within `kl` nats of SFT; `win_rate`: by the headline judge; "
        "`held_out_accuracy`: of validation pairs, for rows of pair losses on the suite's comparisons",
    )
    kl: Positive | None = Field(
        None,
        description="nats, of `reward_at_kl`; a candidate further away counts as its mixture with SFT within them",
    )

    @model_validator(mode="after")
    def _kl_is_read(self) -> "Choice":
        if self.criterion == "reward_at_kl" and self.kl is None:
            raise ValueError("kl: reward_at_kl compares at a KL; state it in nats, such as 5")
        if self.criterion != "reward_at_kl" and self.kl is not None:
            raise ValueError(f"kl: the criterion {self.criterion} does not read it; leave it out")
        return self


class Select(Choice):
    """The search that every selected row gets."""

    grid: Grid | dict[str, Grid] = Field(
        description="keys of a row with the values to try, for all rows; or such a grid for each row, by its name or "
        "method"
    )
    rows: tuple[str, ...] | None = Field(None, min_length=1, description="rows to select; default: all")
    prompts: Literal["validation"] = Field("validation", description="prompts that candidates answer")
    budget: Count | None = Field(None, description="most candidates of a row; default: no limit")
    unequal: bool = Field(False, description="allow rows to have grids of different sizes")
    early_stopping: bool = Field(
        False, description="the checkpoints of each training are candidates too, so that its length is chosen as well"
    )

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        """Refuse a value that is no list in a grid of lists: as a grid for each row, all of it would be wrong."""
        grid = values.get("grid") if isinstance(values, dict) else None
        if isinstance(grid, dict) and any(isinstance(value, list) for value in grid.values()):
            wrong = {key: value for key, value in grid.items() if not isinstance(value, list | dict)}
            if wrong:
                expected = "expected a list of the values to try"
                raise ValueError("\n".join(f"grid.{key}: {expected}, got {value!r}" for key, value in wrong.items()))
        return values

    @model_validator(mode="after")
    def _checkpoints_are_measured(self) -> "Select":
        if self.early_stopping and self.criterion == "held_out_accuracy":
            raise ValueError(
                "early_stopping: checkpoints have no held-out accuracy; choose the criterion reward_at_kl or win_rate"
            )
        return self

    def choice(self) -> Choice:
        """Return what decides, without the grids: a job that chooses reads no more."""
        return Choice(criterion=self.criterion, kl=self.kl)

    def grid_of(self, name: str, method: str) -> Grid | None:
        """Return the grid of a row, None if there is none for it."""
        values: dict[str, Any] = self.grid
        if all(isinstance(value, list) for value in values.values()):
            return values
        return values.get(name, values.get(method))
