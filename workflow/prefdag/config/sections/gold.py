"""Which pairs of a round's samples get a gold label, and what labels them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from prefdag.config.sections.judge import LLM
from prefdag.schema import Count, Section


class Gold(Section):
    """Gold labels of one round."""

    num_pairs: Count
    by: str = Field(description="a ground truth's name, `judge`, or a function of the user's as file.py:function")
    judge: LLM | None = None
    labels: Literal["hard", "bradley_terry"] = "hard"

    @property
    def user_function(self) -> tuple[Path, str] | None:
        """Return file and function of a user's gold score."""
        path, _, name = self.by.rpartition(":")
        return (Path(path), name) if path else None

    def user_files(self) -> tuple[Path, ...]:
        return (*((self.user_function[0],) if self.user_function else ()), *super().user_files())
