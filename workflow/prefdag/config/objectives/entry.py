"""What every entry of the registry of preference losses states."""

from typing import Any, ClassVar

from prefdag.config.section import Section


class Objective(Section):
    """One preference loss. `reads` lists what it needs beside the policy's log-probs."""

    paper: ClassVar[str]
    formula: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    method: str

    def parameters(self) -> dict[str, Any]:
        """The loss's own keyword arguments."""
        return self.model_dump(exclude={"method"})
