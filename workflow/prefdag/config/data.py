"""The raw rows: from the Hub, from local files, or from the embedded text world."""

from pydantic import Field, model_validator

from prefdag.config.section import Count, Section, Seed


class World(Section):
    """Sizes of the embedded world's splits."""

    seed: Seed = 0
    reviews: Count = Field(20000, description="reviews to pre-train and fine-tune on")
    validation_reviews: Count = 500
    train_prompts: Count = 1000
    validation_prompts: Count = 100
    test_prompts: Count = 300


class Data(Section):
    """One source of rows. `train`, `validation` and `test` name files (or globs) inside it."""

    source: str = Field(description="`world`, `hub:owner/name`, a local folder, or a local file")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub repository")
    train: str | None = Field(None, description="file or glob inside the source")
    validation: str | None = None
    test: str | None = None
    max_rows: Count | None = Field(None, description="read only this many rows of each split")
    world: World | None = None

    @model_validator(mode="after")
    def _source_and_files_agree(self) -> "Data":
        if self.source == "world" and self.world is None:
            raise ValueError("source is `world`, so the key `world` must state its sizes")
        if self.source != "world" and self.train is None:
            raise ValueError("train is missing: name the file (or glob) of training rows inside the source")
        return self
