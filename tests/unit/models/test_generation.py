"""Sampling: what a prompt draws is its own, and comes from the distribution that was asked for."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from comparisons import ARCHITECTURES, EOS, VOCABULARY, comparisons, tiny
from conftest import ROOT
from prefdag.config.sections.sampling import Sampling
from prefdag.data.token_store import Comparison
from prefdag.data.tokenization import load_tokenizer
from prefdag.models import generation, kv_cache
from prefdag.models.attention.interface import NAME
from prefdag.models.generation import Sample, sample, sample_tokens
from prefdag.models.kv_cache import ROOM, KVCache
from prefdag.models.loading import load_policy
from prefdag.models.logprobs import logprobs
from prefdag.models.naive import naive_sample, transformers_attention
from prefdag.models.packing import pack

STORIES = ROOT.parent / "shared/data/stories260K"
random = np.random.default_rng(0)
PROMPTS = [random.integers(2, VOCABULARY, size).tolist() for size in (1, 9, 4, 4, 2, 7)]
KEYS = [11, 5, 7, 3, 2, 13]


ENDING = {"temperature": 3.0, "max_new_tokens": 50, "num_samples": 2}  # nearly uniform: an end-of-turn in 1 of 50 draws


def policy(shape: str = "llama", seed: int = 0) -> PreTrainedModel:
    return tiny(shape, seed=seed, dtype=torch.float32)


def draw_samples(
    model: PreTrainedModel, prompts: Sequence[list[int]] = PROMPTS, **settings: object
) -> dict[tuple[int, int], Sample]:
    keys = KEYS[: len(prompts)]
    chosen = Sampling(**{"num_samples": 3, "max_new_tokens": 30, "batch_size": 100, **settings})
    return {(one.prompt, one.sample): one for one in sample(model, prompts, keys, chosen, EOS)}


@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_a_prompt_draws_the_same_whatever_its_batch(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, three at a time, all 12 together; among these, rows that had ended left the batch more than once."""
    compactions = []
    select = KVCache.select

    def counted(self: KVCache, rows: torch.Tensor) -> None:
        if len(rows) == len(set(rows.tolist())):
            compactions.append(len(rows))
        select(self, rows)

    monkeypatch.setattr(KVCache, "select", counted)
    model = policy(shape)
    runs = [draw_samples(model, batch_size=size, **ENDING) for size in (1, 3, 64)]
    assert [len(one) for one in runs] == [12] * 3
    for other in runs[1:]:
        for place, one in runs[0].items():
            assert (other[place].ids, other[place].ended) == (one.ids, one.ended)
            assert other[place].logprobs == pytest.approx(one.logprobs, abs=1e-4)
    assert len({len(one.ids) for one in runs[0].values()}) > 3
    assert len([size for size in compactions if size > 1]) > 1, (
        "hardly a batch was compacted, so nothing was shown of it"
    )


def test_a_prompt_draws_the_same_whatever_stands_beside_it() -> None:
    """Its key names its noise, not its place."""
    together, reversed_ = draw_samples(policy()), {}
    chosen = Sampling(num_samples=3, max_new_tokens=30, batch_size=5)
    for one in sample(policy(), PROMPTS[::-1], KEYS[::-1], chosen, EOS):
        reversed_[5 - one.prompt, one.sample] = one
    assert all(reversed_[place].ids == one.ids for place, one in together.items())


def test_samples_of_a_prompt_differ_and_so_do_seeds() -> None:
    samples, other = draw_samples(policy()), draw_samples(policy(), seed=1)
    assert len({tuple(one.ids) for one in samples.values()}) == len(samples)
    assert all(samples[place].ids != other[place].ids for place in samples)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.3}])
@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_the_plain_way_draws_the_same(shape: str, settings: dict) -> None:
    """One response at a time, the whole sequence encoded again for every token, no cache and no padding."""
    model = policy(shape)
    samples = draw_samples(model, num_samples=2, max_new_tokens=12, **settings)
    chosen = Sampling(num_samples=2, max_new_tokens=12, **settings)
    for (index, number), one in samples.items():
        ids, values = naive_sample(model, PROMPTS[index], KEYS[index], number, chosen, EOS)
        assert one.ids == ids and one.logprobs == pytest.approx(values, abs=1e-4)


def test_a_prompt_is_encoded_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six prompts of 27 tokens together, three samples of each: 18 rows after the first forward pass, never more."""
    shapes, model = [], policy()
    forward = model.forward

    def watched(input_ids: torch.Tensor, **options: object) -> object:
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", watched)
    draw_samples(model, num_samples=3, max_new_tokens=5)
    assert shapes[0] == (6, 9) and shapes[1] == (18, 1) and len(shapes) == 5


def test_a_greedy_prompt_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    advance = KVCache.advance
    monkeypatch.setattr(
        KVCache, "advance", lambda self, new: (rows.append(len(self._layers[0][0])), advance(self, new))
    )
    samples = draw_samples(policy(), temperature=0, num_samples=3)
    assert max(rows) == 6 and len(samples) == 18
    assert all(samples[index, 0].ids == samples[index, number].ids for index in range(6) for number in (1, 2))


def test_the_cache_grows_when_its_room_is_used_up() -> None:
    """Longer than a block of room, with and without padding: the same as one by one."""
    model = policy("llama")
    longest = {"max_new_tokens": 2 * ROOM + 3, "num_samples": 1}
    together, alone = (draw_samples(model, batch_size=size, **longest) for size in (64, 1))
    assert max(len(one.ids) for one in together.values()) > 2 * ROOM
    assert all(together[place].ids == one.ids for place, one in alone.items())


@pytest.mark.parametrize("lost", ["mask", "order"])
def test_a_cache_that_mixes_rows_is_caught(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twins: padding that is attended to, and rows taken in another order than asked for."""
    whole = draw_samples(policy())
    if lost == "mask":
        prompts_of = kv_cache.Prompts.of
        monkeypatch.setattr(kv_cache.Prompts, "of", lambda owner, layers, real: prompts_of(owner, layers, None))
        monkeypatch.setattr(KVCache, "mask", lambda self, window: self._mask if self.columns == 0 else None)
    else:
        select = KVCache.select
        monkeypatch.setattr(KVCache, "select", lambda self, rows: select(self, rows.flip(0)))
    broken = draw_samples(policy())
    assert any(broken[place].ids != one.ids for place, one in whole.items())


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K model is not on this machine")
def test_greedy_stories_are_those_of_generate() -> None:
    """Four unequal prompts in one padded batch, against transformers' generate on the same padded batch and alone."""
    model = load_policy(STORIES, torch.device("cpu"))
    tokenizer = load_tokenizer(STORIES)
    texts = ["Once upon a time", "Lily and Tom went to the park. They saw a big", "One day, a cat", "The"]
    prompts = [[1, *ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    samples = list(sample(model, prompts, range(4), Sampling(temperature=0, max_new_tokens=64, batch_size=64), 2))
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": 2, "pad_token_id": 0}
    with transformers_attention(model):
        together = model.generate(padded, attention_mask=mask, **options)[:, width:]
        for one in samples:
            ids = torch.tensor([prompts[one.prompt]])
            alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
            assert one.ids == alone.tolist()[: len(one.ids)] == together[one.prompt].tolist()[: len(one.ids)]
            assert len(one.ids) == 64 or one.ended
    text = tokenizer.decode(
        [*prompts[0], *next(one.ids for one in samples if one.prompt == 0)], skip_special_tokens=True
    )
    assert text.startswith("Once upon a time"), text


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K model is not on this machine")
def test_sampled_stories_do_not_depend_on_the_batch() -> None:
    """Identical text at batches of 1, 3 and 64, at temperatures 1 and 0.7."""
    model = load_policy(STORIES, torch.device("cpu"))
    texts = ["Once upon a time", "Lily and Tom went to the park. They saw a big", "One day, a cat", "The"]
    prompts = [[1, *ids] for ids in load_tokenizer(STORIES)(texts, add_special_tokens=False)["input_ids"]]
    for temperature in (1.0, 0.7):
        samples = []
        for size in (1, 3, 64):
            settings = Sampling(num_samples=3, temperature=temperature, max_new_tokens=32, batch_size=size)
            samples.append({(one.prompt, one.sample): one.ids for one in sample(model, prompts, range(4), settings, 2)})
        assert samples[0] == samples[1] == samples[2] and len(set(map(tuple, samples[0].values()))) == 12


@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_greedy_equals_transformers_generate(shape: str) -> None:
    model = policy(shape)
    samples = draw_samples(model, temperature=0, num_samples=1, max_new_tokens=12)
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": 0}
    for index, prompt in enumerate(PROMPTS):
        with transformers_attention(model):
            tokens = torch.tensor([prompt])
            expected = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)[
                0, len(prompt) :
            ].tolist()
        assert samples[index, 0].ids == expected


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_stored_logprobs_are_the_segment_paths(shape: str, top_p: float) -> None:
    """Of the policy itself: neither temperature nor top_p is in them. 1e-5 nats in float32."""
    model = policy(shape)
    samples = list(draw_samples(model, top_p=top_p, temperature=0.7).values())
    made = [Comparison(np.array(PROMPTS[one.prompt]), (np.array(one.ids),)) for one in samples]
    with torch.no_grad():
        expected = logprobs(model, pack(made)).tokens
    stored = torch.tensor([value for one in samples for value in one.logprobs])
    assert (stored - expected).abs().max() < 1e-5


def test_an_ended_response_holds_its_end_of_turn_and_nothing_after() -> None:
    samples = draw_samples(policy(), **ENDING).values()
    assert {one.ended for one in samples} == {True, False}
    for one in samples:
        assert one.ended == (one.ids[-1] == EOS) and EOS not in one.ids[:-1]
        assert len(one.ids) == len(one.logprobs) and (one.ended or len(one.ids) == 50)


def test_the_model_attends_over_segments_again_afterwards() -> None:
    """Also when the reader stops half-way; otherwise a later log-prob would let everything in a row see everything."""
    model, samples = policy(), comparisons(3, 2)
    before = logprobs(model, pack(samples)).tokens
    next(sample(model, PROMPTS, KEYS, Sampling(max_new_tokens=3, batch_size=1), EOS))
    assert model.config._attn_implementation == NAME
    assert torch.equal(logprobs(model, pack(samples)).tokens, before)


def test_segments_under_another_attention_are_refused() -> None:
    model = policy()
    model.set_attn_implementation("sdpa")
    with pytest.raises(AssertionError):
        logprobs(model, pack(comparisons(3, 2)))


def logits(*probabilities: float, rows: int = 1) -> torch.Tensor:
    return torch.tensor(probabilities).log().expand(rows, -1)


UNIFORM = torch.tensor([0.0, 0.12, 0.13, 0.62, 0.63, 0.74, 0.76, 0.999])


def test_choose_inverts_the_cumulative_distribution() -> None:
    """Probabilities 1/8, 1/2, 1/8, 1/4: token 0 below 0.125, 1 below 0.625, 2 below 0.75, then 3."""
    samples = sample_tokens(logits(0.125, 0.5, 0.125, 0.25, rows=8), UNIFORM, 1.0, 1.0)
    assert samples.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("width", [3, 64, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_blocks_choose_what_a_cumulative_sum_chooses(
    width: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tokens have no probability at all, among them the first and the last."""
    monkeypatch.setattr(generation, "CACHE", 8 * 5 * 64)
    draw = np.random.default_rng(1)
    rows = torch.from_numpy(4 * draw.standard_normal((200, width))).float()
    rows[:, ::2] = -1e4
    uniform = torch.from_numpy(draw.random(200))
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    units = generation._to_units((rows.double() / temperature).softmax(-1))
    chosen = sample_tokens(rows, uniform, temperature, 1.0)
    assert torch.equal(chosen, generation._invert_cdf(units, uniform)) and (chosen % 2 == 1).all()


def test_samples_share_their_prompts_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended rows leave, so that prompts have unequal numbers of samples left, and some have none."""
    model, shared = policy(), []
    attend = kv_cache.attend_shared

    def counted(query: torch.Tensor, *rest: object) -> torch.Tensor:
        shared.append(len(query))
        return attend(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kv_cache, "attend_shared", counted)
    together = draw_samples(model, **ENDING)
    assert max(shared) == 12 and min(shared) < 7
    monkeypatch.setattr(kv_cache.Prompts, "of", None)
    monkeypatch.setattr(KVCache, "shares", property(lambda cache: False, lambda cache, value: None), raising=False)
    alone = draw_samples(model, **ENDING)
    assert {key: one.ids for key, one in together.items()} == {key: one.ids for key, one in alone.items()}
    for key, one in together.items():
        assert np.allclose(one.logprobs, alone[key].logprobs, atol=1e-5)


def test_choose_keeps_the_smallest_set_that_reaches_top_p() -> None:
    """0.6 keeps tokens 1 and 3 (1/2 and 1/4): 1 below two thirds, then 3. 0.5 keeps 1 alone."""
    rows = logits(0.125, 0.5, 0.125, 0.25, rows=8)
    assert sample_tokens(rows, UNIFORM, 1.0, 0.6).tolist() == [1, 1, 1, 1, 1, 3, 3, 3]
    assert sample_tokens(rows, UNIFORM, 1.0, 0.5).tolist() == [1] * 8
    equal = sample_tokens(torch.zeros(8, 4), UNIFORM, 1.0, 0.5)
    assert equal.tolist() == [0, 0, 0, 1, 1, 1, 1, 1], "two quarters reach a half exactly"


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_choose_never_takes_a_token_without_probability(top_p: float) -> None:
    """The largest uniform number below 1 may round to the whole sum; the last tokens have probability 0."""
    rows = torch.tensor([[0.3, 0.1, 0.2, -torch.inf, -torch.inf]]).expand(2, -1)
    samples = sample_tokens(rows, torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64), 1.0, top_p)
    assert samples.max() <= 2


def chi_square(tokens: torch.Tensor, expected: Sequence[float]) -> float:
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    wanted = torch.tensor(expected, dtype=torch.float64) * len(tokens)
    assert counts[wanted == 0].sum() == 0
    return ((counts - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum().item()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),  # p^2, normalised
        (1.0, 0.7, [0.625, 0.375, 0, 0]),  # 0.5 is not enough, 0.5 + 0.3 is
        (1.0, 0.5, [1, 0, 0, 0]),  # 0.5 reaches it: the smallest set
    ],
)
def test_choose_draws_with_the_right_frequencies(temperature: float, top_p: float, expected: list[float]) -> None:
    """20,000 draws: chi-square of 3 degrees of freedom is above 16.3 once in a thousand."""
    num = 20_000
    uniform = torch.from_numpy(np.random.default_rng(1).random(num))
    samples = sample_tokens(logits(0.5, 0.3, 0.15, 0.05, rows=num), uniform, temperature, top_p)
    assert chi_square(samples, expected) < 16.3


def test_the_bound_on_frequencies_is_able_to_fail() -> None:
    """Draws from a distribution two points away are beyond it."""
    uniform = torch.from_numpy(np.random.default_rng(1).random(20_000))
    samples = sample_tokens(logits(0.48, 0.32, 0.15, 0.05, rows=20_000), uniform, 1.0, 1.0)
    assert chi_square(samples, [0.5, 0.3, 0.15, 0.05]) > 16.3


def test_temperature_zero_takes_the_most_likely() -> None:
    samples = sample_tokens(logits(0.2, 0.5, 0.3, rows=3), torch.tensor([0.0, 0.5, 0.99]), 0.0, 1.0)
    assert samples.tolist() == [1, 1, 1]
