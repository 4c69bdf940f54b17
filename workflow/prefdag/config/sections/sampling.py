"""Settings of sampling, shared by `pairs` and `generate`."""

from pydantic import Field

from prefdag.schema import Compute, Count, NonNegative


class Sampling(Compute):
    """How responses are sampled."""

    num_samples: Count = Field(1, description="responses per prompt")
    temperature: NonNegative = Field(1.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: Count = 128
    batch_size: Count = Field(64, description="responses sampled at a time; decides speed and memory only")
