"""Which noise a policy's answers are sampled with: equal for every policy, another one in each round."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefdag.data.token_store import Comparison
from prefdag.models.generation import Sample
from prefdag.stages import generate
from prefdag.stages.generate import Job, run


def keys_of(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int | None, policy: str) -> list[int]:
    """Return the names of the prompts' noise in a round, or of the test split."""
    seen: list[list[int]] = []

    def sampled(job: Job, workspace: Any, policy: Path, prompts: Any, keys: list[int], end: int) -> list[Sample]:
        seen.append(keys)
        return [Sample(index, 0, [5], [0.0], True) for index in range(len(prompts))]

    compared = Comparison(np.array([1]), (np.array([2]),))
    answered = [("train", number, compared) for number in (3, 4, 9)]
    content = {"config": {"prepare": {"template": "plain"}}}
    for name, value in {
        "load_tokenizer": lambda path: None,
        "settle": lambda *arguments: None,
        "stop_token": lambda *arguments: 0,
        "read_manifest": lambda path: SimpleNamespace(content=content),
        "Prepare": SimpleNamespace(parse=lambda *arguments: None),
        "_first_comparisons": lambda path, split, *rest: answered if split in ("train", "test") else [],
        "_sampled": sampled,
        "_write": lambda *arguments: None,
    }.items():
        monkeypatch.setattr(generate, name, value)
    journal = SimpleNamespace(artifact=lambda *arguments: None)
    workspace: Any = SimpleNamespace(
        name=policy, output=folder, journal=journal, results=lambda facts: None, log_dataset=lambda *arguments: None
    )
    job = Job.parse({"generate": {"max_new_tokens": 4}, **({} if number is None else {"round": number})}, "test")
    run(job, workspace, comparisons=folder / "manifest.json", policy=folder / policy / "manifest.json")
    return seen[0]


def test_every_round_samples_with_other_noise_and_every_policy_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys_of(monkeypatch, tmp_path, None, "sft") == keys_of(monkeypatch, tmp_path, None, "dpo") == [3, 4, 9]
    rounds = [keys_of(monkeypatch, tmp_path, number, "dpo") for number in (1, 2, 3)]
    assert len({key for keys in rounds for key in keys}) == 9
    assert keys_of(monkeypatch, tmp_path, 2, "ipo") == rounds[1]
