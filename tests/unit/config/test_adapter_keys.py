"""The key `adapter`: part of a job's config only where it is stated, and refused in one sentence where it is wrong."""

import json
from typing import Any

import pytest

from prefdag.config.jobs import config_of
from prefdag.config.suite import resolve
from prefdag.errors import UserError

SUITE: dict[str, Any] = {
    "name": "adapters",
    "model": {"source": "model"},
    "data": {"source": "rows.jsonl"},
    "score": {"reward": "vader"},
    "runs": [{"name": "dpo", "method": "dpo", "beta": 0.1}],
}


def test_a_config_states_an_adapter_only_where_there_is_one() -> None:
    rows = [
        {"name": "section", "method": "dpo", "beta": 0.1},
        {"name": "rank", "method": "dpo", "beta": 0.1, "adapter": {"rank": 4}},
        {"name": "full", "method": "dpo", "beta": 0.1, "adapter": None},
    ]
    suite = resolve({**SUITE, "runs": rows, "preference": {"adapter": {"alpha": 8}}}, "suite.yaml")
    stated = {row["name"]: json.loads(config_of(suite, "preference", row["name"]))["preference"] for row in rows}
    assert [stated[name]["adapter"]["rank"] for name in ("section", "rank")] == [16, 4]
    assert stated["rank"]["adapter"]["alpha"] == 8, "a row's keys replace those of the section one by one"
    assert "adapter" not in stated["full"]
    plain = resolve(SUITE, "suite.yaml")
    assert "adapter" not in config_of(plain, "sft") + config_of(plain, "preference", "dpo")


def test_a_grid_names_its_adapters() -> None:
    grid = [{"name": "lora", "method": "dpo", "beta": 0.1, "adapter": [{"rank": 2}, {"rank": 4}, None]}]
    names = [run.name for run in resolve({**SUITE, "runs": [], "grid": grid}, "suite.yaml").runs]
    assert names == ["lora-adapter-rank2", "lora-adapter-rank4", "lora-adapterNone"]


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"rank": 0}, "adapter.rank: expected a number of at least 1, got 0"),
        ({"alpha": 0}, "adapter.alpha: expected a number above 0, got 0"),
        ({"dropout": 1}, "adapter.dropout: expected a number below 1, got 1"),
        ({"dropout": -0.1}, "adapter.dropout: expected a number of at least 0, got -0.1"),
        ({"kind": "prefix"}, "adapter.kind: expected one of 'lora', got \"prefix\""),
        ({"target": "q_proj"}, "adapter.target: expected all-linear, or different names of layers such as"),
        ({"target": []}, "adapter.target: expected all-linear, or different names of layers such as"),
        ({"target": ["q_proj", "q_proj"]}, "adapter.target: expected all-linear, or different names of layers such as"),
        ({"base": "int8"}, "adapter.base: expected one of 'float32', 'bfloat16' or 'nf4', got \"int8\""),
        ({"r": 8}, "adapter.r: unknown key"),
        (True, "adapter: expected keys and values, got true"),
    ],
)
@pytest.mark.parametrize("section", ["sft", "reward", "preference", "online"])
def test_a_mistake_in_an_adapter_is_one_sentence(section: str, adapter: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve({**SUITE, section: {"adapter": adapter}}, "suite.yaml")
    assert sentence in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sft": {"max_steps": 0, "adapter": {}}}, "adapter: max_steps is 0, so nothing is trained"),
        ({"generate": {"adapter": {}}}, "generate.adapter: unknown key"),
        ({"pretrain": {"adapter": {}}}, "pretrain.adapter: unknown key; it belongs in"),
        ({"runs": [{"name": "rloo", "method": "rloo", "adapter": {"dropout": 0.1}}]}, "adapter.dropout: the sampling"),
    ],
)
def test_an_adapter_belongs_to_a_training(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve({**SUITE, **changes}, "suite.yaml")
