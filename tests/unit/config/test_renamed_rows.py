"""A result is found again under its row's new name, if it is what the job would make."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.suite import Suite, resolve
from prefdag.planning import freshness
from prefdag.planning.freshness import outdated, take_over_renamed
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import MANIFEST, describe, read_manifest

ROW = {"name": "dpo", "method": "dpo", "beta": 0.1}


def suite(*rows: dict[str, Any]) -> Suite:
    return resolve(merge(yaml.safe_load(MINI), {"runs": list(rows)}), "x.yaml")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Finished results of a suite with one row, without files."""
    monkeypatch.setattr(freshness, "code_digests", lambda stage, files: {"stage.py": "c0de"})
    root, one = tmp_path / "results", suite(ROW)
    for folder in jobs_of(one):
        stage, _, name = folder.partition("/")
        read = {option: names for option, names in inputs_of(one, stage, name or None).items() if names}
        shas = {
            option: [read_manifest(root / each / MANIFEST).sha256 for each in names] for option, names in read.items()
        }
        (root / folder).mkdir(parents=True)
        config = json.loads(jobs.config_of(one, stage, name or None))
        (root / folder / MANIFEST).write_bytes(
            describe(root / folder, stage, config, {"stage.py": "c0de"}, shas, {"made as": folder})
        )
    assert not outdated(one, root, Digests(root / "digests.json"))
    return root


def test_seeds_that_are_added_keep_the_first_ones_results(results: Path):
    digests = Digests(results / "digests.json")
    seeds = suite({**ROW, "seeds": [0, 1]})
    moved = take_over_renamed(seeds, results, digests)
    assert moved == {f"{stage}/dpo-seed0": f"{stage}/dpo" for stage in ("preference", "generate", "score", "judge")}
    made = read_manifest(results / "preference/dpo-seed0" / MANIFEST)
    assert made.content["facts"] == {"made as": "preference/dpo"}
    again = set(outdated(seeds, results, digests))
    assert again == {*(f"{stage}/dpo-seed1" for stage in ("preference", "generate", "score", "judge")), "report"}
    assert next(iter(take_over_renamed(suite(ROW), results, digests).values())) == "preference/dpo-seed0", "and back"


def test_other_settings_or_a_row_that_stays_take_nothing_over(results: Path):
    digests = Digests(results / "digests.json")
    assert take_over_renamed(suite({**ROW, "name": "b", "beta": 0.2}), results, digests) == {}
    assert take_over_renamed(suite({**ROW, "seeds": [1]}), results, digests) == {}
    assert take_over_renamed(suite(ROW, {**ROW, "name": "b"}), results, digests) == {}
    assert (results / "preference/dpo" / MANIFEST).is_file()
