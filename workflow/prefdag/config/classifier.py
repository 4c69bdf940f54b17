"""A text classifier whose P(positive) is the ground-truth reward: trained on labelled rows, or fetched."""

from pydantic import Field, model_validator

from prefdag.schema import Count, Positive, Section, Seed

TRAINED = "trained"


class TfIdf(Section):
    """Logistic regression on TF-IDF of words, trained on the rows of `data.labelled`."""

    ngrams: Count = Field(2, description="words of the longest n-gram")
    min_df: Count = Field(3, description="fewest texts that contain an n-gram")
    max_features: Count = Field(100000, description="only the most frequent n-grams")
    sublinear_tf: bool = Field(True, description="1 + log of a count in place of the count")
    inverse_regularisation: Positive = Field(10.0, description="C of the L2 penalty; larger fits closer")
    max_iterations: Count = Field(1000, description="of L-BFGS")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of texts held out of training to measure it")


class Classifier(Section):
    """`source: trained` fits it to labelled rows; anything else is a sequence classifier that is fetched."""

    seed: Seed = Field(0, description="for the choice of held-out texts and the interval of accuracy")
    source: str = Field(TRAINED, description="`trained`, `hub:owner/name`, or a local folder")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub repository")
    positive: str | None = Field(None, description="of a fetched one: the label whose probability is the reward")
    max_tokens: Count = Field(512, description="of a fetched one: tokens read of a text, its own special ones included")
    tokens_per_batch: Count = Field(8192, description="of a fetched one: padded tokens of one forward")
    tfidf: TfIdf = TfIdf()

    @model_validator(mode="after")
    def _nothing_goes_unread(self) -> "Classifier":
        if self.is_trained and self.positive is not None:
            raise ValueError("positive: read only of a fetched classifier; a trained one learns the label 1")
        if not self.is_trained and self.positive is None:
            raise ValueError(f"positive: missing; name the label of {self.source} whose probability is the reward")
        if not self.is_trained and self.tfidf != TfIdf():
            raise ValueError("tfidf: read only with source `trained`; remove it")
        return self

    @property
    def is_trained(self) -> bool:
        return self.source == TRAINED
