"""Where a reward model that is not trained here comes from, and how it reads a dialogue."""

from typing import Any, Literal

from pydantic import Field, model_validator

from prefdag.config.data import HUB
from prefdag.config.model import Origin
from prefdag.errors import UserError
from prefdag.schema import Section


class RewardSource(Section):
    """An `AutoModelForSequenceClassification` that scores responses."""

    source: str = Field(description="`hub:owner/name`, `hub:owner/name@revision`, or a local folder")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub repository")
    template: Literal["auto", "policy", "chat", "plain", "pair"] = Field(
        "auto",
        description="how it reads a dialogue: `policy`, the policy's own tokens; `chat`, by its chat template; "
        "`plain`, as a transcript; `pair`, prompt and response as two texts; `auto`: `policy` if tokenizer and "
        "template are the policy's, else `chat` if it has a template, else `plain`",
    )
    label: str | None = Field(
        None, description="of a model with several labels: the one whose log-odds are the reward; one label: its logit"
    )

    @model_validator(mode="before")
    @classmethod
    def _revision_in_the_source(cls, values: Any) -> Any:
        source = values.get("source") if isinstance(values, dict) else None
        if not isinstance(source, str) or not source.startswith(HUB) or "@" not in source:
            return values
        name, _, revision = source.partition("@")
        if values.get("revision") not in (None, revision):
            raise ValueError(f"revision: {values['revision']!r}, but source names {revision!r}; state one of them")
        return {**values, "source": name, "revision": revision}

    @property
    def origin(self) -> Origin:
        return Origin(source=self.source, revision=self.revision)


def check_labels(config: dict[str, Any], source: RewardSource) -> int:
    """Return the index of the label that is the reward, from config.json.

    Raises:
        UserError: a language model, several labels and none stated, or one that the model has not.
    """
    architectures = config.get("architectures") or []
    if architectures and all("CausalLM" in name or "LMHead" in name for name in architectures):
        raise UserError(
            f"reward.source: {source.source} is a language model ({architectures[0]}) and holds no weights of a reward "
            "head; name a model for sequence classification"
        )
    labels = [str(one) for one in (config.get("id2label") or {}).values()] or ["LABEL_0", "LABEL_1"]
    if len(labels) == 1 and source.label is None:
        return 0
    if source.label is None:
        known = ", ".join(labels)
        raise UserError(
            f"reward.label: {source.source} has {len(labels)} labels ({known}); name the one whose log-odds are the "
            "reward"
        )
    if source.label not in labels:
        raise UserError(f"reward.label: {source.source} has no label {source.label!r}; it has {', '.join(labels)}")
    return labels.index(source.label)
