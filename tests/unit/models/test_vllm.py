"""The backend vLLM, against a fake that records its requests and answers by the seed of each request."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from prefdag.config.sections.generation import Generation
from prefdag.errors import UserError
from prefdag.models.generation import Sample
from prefdag.models.vllm import sample_vllm
from prefdag.seeds import named_seed

STAND_IN = '''
"""Answers with the seed's last decimals as tokens, 7 to end with where the seed is even."""
from types import SimpleNamespace

ASKED = {}

class SamplingParams:
    def __init__(self, **options):
        self.__dict__ = options

class LLM:
    def __init__(self, **options):
        ASKED["engine"] = options

    def generate(self, prompts, params, use_tqdm=True):
        ASKED["prompts"], ASKED["params"], ASKED["use_tqdm"] = prompts, [vars(one) for one in params], use_tqdm
        return [self.answer(*row) for row in zip(prompts, params, strict=True)]

    def answer(self, prompt, params):
        ids = [10 + int(digit) for digit in str(params.seed)[-params.max_tokens:]]
        if params.seed % 2 == 0:
            ids[-1] = params.stop_token_ids[0]
        logprobs = [{token: SimpleNamespace(logprob=-0.5 * token), -1: None} for token in ids]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs)])
'''
PROMPTS, KEYS, EOS = [[1, 2, 3], [4], [5, 6]], [11, 5, 8], 7


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    import vllm

    yield vllm.ASKED
    sys.modules.pop("vllm", None)


def draw_samples(**settings: Any) -> list[Sample]:
    chosen = Generation(backend="vllm", **{"num_samples": 2, "max_new_tokens": 4, **settings})
    return list(sample_vllm(Path("weights"), PROMPTS, KEYS, chosen, EOS))


def test_every_response_has_a_seed_of_its_own(requests: dict[str, Any]) -> None:
    samples = draw_samples(seed=3)
    assert [(one.prompt, one.sample) for one in samples] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    seeds = [named_seed(3, "sampling", key, number) for key in KEYS for number in (0, 1)]
    assert [one["seed"] for one in requests["params"]] == seeds and len(set(seeds)) == 6
    assert [one["prompt_token_ids"] for one in requests["prompts"]] == [PROMPTS[k // 2] for k in range(6)]
    for one, seed in zip(samples, seeds, strict=True):
        digits = [10 + int(digit) for digit in str(seed)[-4:]]
        assert one.ended == (seed % 2 == 0) and one.ids == (digits[:3] + [EOS] if one.ended else digits)
        assert one.logprobs == [-0.5 * token for token in one.ids]
    assert {one.ended for one in samples} == {True, False}


def test_what_the_suite_says_is_what_vllm_is_asked(requests: dict[str, Any]) -> None:
    draw_samples(temperature=0.7, top_p=0.9, num_samples=1)
    assert requests["engine"]["model"] == "weights" and requests["engine"]["logprobs_mode"] == "raw_logprobs"
    assert requests["engine"]["generation_config"] == "vllm", "nor may the model's own defaults come in"
    for params in requests["params"]:
        params.pop("seed")
        assert params == {
            "temperature": 0.7, "top_p": 0.9, "max_tokens": 4, "stop_token_ids": [EOS], "ignore_eos": True,
            "logprobs": 0, "detokenize": False,
        }  # fmt: skip


def test_greedy_samples_are_drawn_once(requests: dict[str, Any]) -> None:
    samples = draw_samples(temperature=0, num_samples=3)
    assert len(requests["prompts"]) == 3 and len(samples) == 9
    assert all(samples[3 * index].ids == samples[3 * index + 2].ids for index in range(3))


def test_without_vllm_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="generate.backend: vllm cannot be imported .*remove `backend`"):
        draw_samples()


def test_temperatures_that_vllm_would_change_are_refused() -> None:
    assert Generation(backend="vllm", temperature=0.01) and Generation(temperature=0.001)
    with pytest.raises(UserError, match="vllm would take 0.01 for 0.001"):
        Generation.parse_json(json.dumps({"backend": "vllm", "temperature": 0.001}), "x")
