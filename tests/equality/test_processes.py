"""A training on two or three processes is the training on one: gradients, losses, metrics and weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparisons import tiny, tiny_scorer
from prefdag.models.packing import deal
from ranks import TRAININGS, Trial, crew

SIZES = [1, 2, 3]
NAMED = {
    **{name: Trial(name) for name in TRAININGS},  # five comparisons a step: two processes have three and two
    **{f"{name} sharded": Trial(name, sharded=True) for name in ("sft", "reward", "dpo", "aot", "kto", "dpo adapter")},
    "dpo float32": Trial("dpo", dtype=torch.float32),
    "sft float32": Trial("sft", dtype=torch.float32),
    "dpo rmsprop": Trial("dpo", optimizer="rmsprop"),
    "dpo sharded rmsprop": Trial("dpo", sharded=True, optimizer="rmsprop"),
    "sft one at a time": Trial("sft", budget=1),  # unequal numbers of micro-batches: a rank goes along
    "sft sharded one at a time": Trial("sft", sharded=True, budget=1),
    "dpo grouped": Trial("dpo repeated", batch_size=6, group="prompt"),
    "dpo fewer than processes": Trial("dpo", batch_size=2),
    "aot fewer than processes": Trial("aot", batch_size=2),
}
TWIN = {"twin": Trial("dpo", twin=True)}
Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def crews(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Seen]]:
    """What every rank saw of every training, by the number of processes."""
    folder = tmp_path_factory.mktemp("crews")
    return {size: crew(size, {**NAMED, **(TWIN if size == 2 else {})}, folder) for size in SIZES}


def differences_of(result: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """How far two trainings are apart in each respect; gradients relative to their largest entry."""
    gradients = zip(result["gradients"], expected["gradients"], strict=True)
    values = [
        (one[name], other[name])
        for one, other in zip(result["metrics"], expected["metrics"], strict=True)
        for name in other
    ]
    assert [set(step) for step in result["metrics"]] == [set(step) for step in expected["metrics"]]
    return {
        "loss": float(np.abs(np.subtract(result["losses"], expected["losses"])).max()),
        "norm": float(np.abs(np.divide(result["norms"], expected["norms"]) - 1).max()),
        "gradient": max(((one - other).abs().max() / other.abs().max()).item() for one, other in gradients),
        "metrics": max(abs(one - other) / max(1.0, abs(other)) for one, other in values) if values else 0.0,
        "weights": max((result["weights"][k] - v).abs().max().item() for k, v in expected["weights"].items()),
    }


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", [name for name in NAMED if "float32" not in name])
def test_several_processes_are_one(name: str, size: int, crews: dict[int, dict[str, Seen]]) -> None:
    """In float64 to 1e-10, though sums are taken in another order; metrics, some of them float32, to 1e-6."""
    (expected,) = crews[1][name]
    assert len(expected["losses"]) == 3 and expected["held"] == sum(v.numel() for v in unique(expected["weights"]))
    for result in crews[size][name]:
        differences = differences_of(result, expected)
        assert differences.pop("metrics") < 1e-6
        assert max(differences.values()) < 1e-10, differences


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["dpo float32", "sft float32"])
def test_in_float32_to_a_millionth(name: str, size: int, crews: dict[int, dict[str, Seen]]) -> None:
    """Loss and gradient of the first step; later ones start from weights that Adam has moved by signs."""
    (expected,) = crews[1][name]
    for result in crews[size][name]:
        assert abs(result["losses"][0] - expected["losses"][0]) < 1e-6
        first, other = result["gradients"][0], expected["gradients"][0]
        assert ((first - other).abs().max() / other.abs().max()).item() < 1e-6


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", NAMED)
def test_all_ranks_hold_the_same_bits(name: str, size: int, crews: dict[int, dict[str, Seen]]) -> None:
    first, *others = crews[size][name]
    for other in others:
        assert all(torch.equal(value, other["weights"][key]) for key, value in first["weights"].items())
        assert (first["losses"], first["norms"]) == (other["losses"], other["norms"])


@pytest.mark.parametrize("name", ["dpo adapter", "dpo adapter sharded", "reward adapter"])
def test_an_adapter_is_trained_alone(name: str, crews: dict[int, dict[str, Seen]]) -> None:
    """Of the weights, only those of the adapter and of a head have a gradient; weight decay leaves the others alone."""
    before = (tiny_scorer() if name.startswith("reward") else tiny()).state_dict()
    (plain,) = crews[1][name.split()[0]]
    for result in crews[2][name]:
        names = [key for key in result["weights"] if "lora_" in key or key.startswith("score")]
        assert len(result["gradients"][0]) == sum(result["weights"][key].numel() for key in names) > 0
        assert len(plain["gradients"][0]) > len(result["gradients"][0])
        frozen = {key.replace(".base_layer", ""): value for key, value in result["weights"].items() if key not in names}
        assert frozen.keys() | set(names) >= before.keys()
        assert all(torch.equal(value, before[key]) for key, value in frozen.items())


def test_a_mean_over_processes_is_caught(crews: dict[int, dict[str, Seen]]) -> None:
    differences = differences_of(crews[2]["twin"][0], crews[1]["dpo"][0])
    assert differences["gradient"] > 0.1 and differences["norm"] > 0.1


def test_a_sharded_rank_holds_its_share_alone(crews: dict[int, dict[str, Seen]]) -> None:
    """Of the layers' numbers a half or a third; the whole of embeddings (50 x 16, the head's as well) and norm (16)."""
    whole = crews[1]["dpo"][0]["held"]
    for size in (2, 3):
        held = [seen["held"] for seen in crews[size]["dpo sharded"]]
        assert sum(held) == (whole - 816) + size * 816
        assert max(held) < 0.7 * whole
        assert all(seen["held"] == whole for seen in crews[size]["dpo"])


def unique(weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The weights without the tied head, which is the embeddings again."""
    return [value for name, value in weights.items() if name != "lm_head.weight"]


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (False, True)])
def test_a_training_goes_on_with_another_number_of_processes(first: bool, second: bool, tmp_path: Path) -> None:
    """Two processes, stopped in step 2; three, stopped in step 4; then one. Layers sharded by either or neither."""
    whole, resume = Trial("dpo", steps=6), tmp_path / "resume"
    (expected,) = crew(1, {"whole": whole}, tmp_path)["whole"]
    seen = crew(2, {"a": Trial("dpo", first, steps=6, stop=1, resumed=resume)}, tmp_path)["a"]
    assert [(one["stopped"], len(one["losses"])) for one in seen] == [("SIGTERM", 1)] * 2
    seen = crew(3, {"b": Trial("dpo", second, steps=6, stop=3, resumed=resume)}, tmp_path)["b"]
    assert [(one["stopped"], len(one["losses"])) for one in seen] == [("SIGTERM", 3)] * 3
    (result,) = crew(1, {"c": Trial("dpo", steps=6, resumed=resume)}, tmp_path)["c"]
    assert len(result["gradients"]) == 2, "four steps were taken before"
    result["gradients"] = [*seen[0]["gradients"], *result["gradients"]]
    expected["gradients"] = expected["gradients"][2:]
    differences = differences_of(result, expected)
    assert differences.pop("metrics") < 1e-6
    assert max(differences.values()) < 1e-10, differences


def test_a_step_is_dealt_out_by_tokens() -> None:
    """7 and 2 against 4, 3 and 2: nine tokens each."""
    lengths = np.array([2, 7, 3, 4, 2])
    assert deal([0, 1, 2, 3, 4], lengths, 2) == [[1, 0], [3, 2, 4]]
    assert deal([3, 1], lengths, 3) == [[1], [3], []]
    assert deal([4, 0, 2], lengths, 1) == [[2, 0, 4]]
