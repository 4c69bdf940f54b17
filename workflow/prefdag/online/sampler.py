"""What samples a round's responses: the policy itself, or vLLM with a copy of its weights."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from prefdag.config.online.settings import Online
from prefdag.config.sections.sampling import Sampling
from prefdag.models.generation import Sample, sample
from prefdag.models.loading import save_merged
from prefdag.models.vllm import Engine, import_vllm


class Sampler(Protocol):
    """Samples responses from the policy as it is now.

    Attributes:
        shares: whether every process samples a part of the prompts; otherwise the first one samples all.
    """

    shares: bool

    def __call__(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[object], sampling: Sampling, title: str
    ) -> Iterator[Sample]:
        """Yield `num_samples` responses to each prompt, with log-probs under the sampling distribution.

        Args:
            prompts: token ids of each prompt.
            keys: names of each prompt's noise.
            sampling: temperature, top_p, lengths, batch size and seed.
            title: of the progress line.
        """


class OwnSampler:
    """Sample by the policy itself. eos: the end-of-turn's id; top_k: as `sample` takes it."""

    shares = True

    def __init__(self, policy: PreTrainedModel, eos: int, top_k: int | None = None) -> None:
        self.policy, self.eos, self.top_k = policy, eos, top_k

    def __call__(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[object], sampling: Sampling, title: str
    ) -> Iterator[Sample]:
        tempered = sampling.temperature > 0
        return sample(self.policy, prompts, keys, sampling, self.eos, title, tempered=tempered, top_k=self.top_k)


class VllmSampler:
    """Sample by vLLM, which loads the policy's weights from a folder before each of its rounds.

    Args:
        policy: whose weights are written.
        tokenizer: folder of the SFT policy, whose other files are copied.
        folder: where the weights are written.
        settings: seed and top_k.
        eos: the end-of-turn's id.

    Raises:
        UserError: vLLM cannot be imported.
    """

    shares = False

    def __init__(self, policy: PreTrainedModel, tokenizer: Path, folder: Path, settings: Online, eos: int) -> None:
        self.policy, self.tokenizer, self.folder, self.settings, self.eos = policy, tokenizer, folder, settings, eos
        self.engine: Engine | None = None
        import_vllm("online.sampler")

    def __call__(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[object], sampling: Sampling, title: str
    ) -> Iterator[Sample]:
        save_merged(self.policy, self.tokenizer, self.folder)
        if self.engine is None:
            self.engine = Engine(self.folder, self.settings.seed)
        yield from self.engine.sample(prompts, keys, sampling, self.eos, self.settings.top_k)
