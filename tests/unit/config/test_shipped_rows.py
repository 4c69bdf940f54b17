"""The shipped suites compare what their headers and the README say."""

from collections import defaultdict
from pathlib import Path

import pytest

from prefdag.config.suite import Suite, read_ordinary_suite

ROOT = Path(__file__).parents[3]


def settings_of(suite: Suite) -> dict[str, dict[str, set[int]]]:
    """Return the seeds of every setting of every method."""
    seeds: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for run in suite.runs:
        seeds[run.reported_method][str(run.objective.parameters())].add(run.preference.seed)
    return seeds


@pytest.mark.parametrize("name", ["quickstart", "imdb-scratch", "imdb-sentiment"])
def test_dpo_and_its_rivals_are_swept(name: str):
    settings = settings_of(read_ordinary_suite([str(ROOT / f"configs/{name}.yaml")]))
    assert all(len(settings[method]) >= 2 for method in ("dpo", "simpo", "ipo", "unlikelihood"))


def test_the_quickstarts_main_rows_have_seeds_samples_temperatures_and_checkpoints():
    suite = read_ordinary_suite([str(ROOT / "configs/quickstart.yaml")])
    settings = settings_of(suite)
    assert all({0, 1, 2} in settings[method].values() for method in ("dpo", "simpo"))
    assert suite.generate.num_samples == 2 and suite.generate.best_of
    main = {run.name for run in suite.runs if run.preference.checkpoints}
    assert main == {name for name in main if "-seed" in name} and len(main) == 6
    for variant in suite.generate.variants.values():
        policies = variant.policies or ()
        assert "sft" in policies and {name.partition("-")[0] for name in policies} == {"sft", "dpo", "simpo"}
        assert set(policies) <= {"sft", *main}
