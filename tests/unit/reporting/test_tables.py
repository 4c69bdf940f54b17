"""How the report names methods."""

from prefdag.config.suite import resolve
from prefdag.reporting.tables import title


def test_one_loss_of_three_kinds_of_pairs_is_three_methods() -> None:
    """Fixed pairs, pairs sampled while training, and pairs of rounds must not be joined by a line."""
    rows = [
        {"name": "a", "method": "dpo", "beta": 0.1},
        {"name": "b", "method": "dpo", "beta": 0.1, "online": {"labels": "soft"}},
        {"name": "c", "method": "dpo", "beta": 0.1, "rounds": 2, "pairs": "max_min"},
    ]
    suite = resolve({"name": "x", "model": {"source": "m"}, "data": {"source": "r.jsonl"}, "runs": rows}, "x.yaml")
    assert [title(run.reported_method) for run in suite.runs] == ["DPO", "Online DPO", "DPO (own pairs)"]
