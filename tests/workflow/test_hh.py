"""The whole DAG, SFT to report, on real dialogues with a real pretrained model."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from conftest import ROOT, checkout

SHARED = ROOT.parent / "shared/data"
SMALL = {
    "name": "small",
    "model": {"source": str(SHARED / "stories260K")},
    "data": {"source": str(SHARED / "hh-harmless"), "train": "test.jsonl.gz", "test": None, "max_rows": 48},
    "prepare": {"bos": True, "validation_fraction": 0.15, "test_fraction": 0.3, "max_prompt_tokens": 400},
    "sft": {"batch_size": 4, "max_steps": 3, "learning_rate": 1e-4},
    "reward": {"batch_size": 4, "max_steps": 3, "learning_rate": 1e-4},
    "preference": {"batch_size": 4, "max_steps": 3, "learning_rate": 1e-4},
    "generate": {"max_prompts": 4, "max_new_tokens": 8},
    "runs": [{"name": "dpo", "method": "dpo", "beta": 0.1}],
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data does not exist")
def test_hh_on_local_files(tmp_path: Path):
    """configs/hh.yaml with a second config file that replaces source, model and sizes, merged by Snakemake."""
    project = checkout(tmp_path / "clone")
    (project.folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    done = project.snakemake("--configfile", "configs/hh.yaml", "small.yaml", suite="")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = project.folder / "results/small"
    runs = pd.read_csv(results / "report/runs.csv")
    assert list(runs["run"]) == ["base", "sft", "dpo"]
    assert runs.set_index("run")["trained"].equals(runs.set_index("run")["reward"])
    audits = json.loads((results / "prepare/comparisons/audit.json").read_text())["splits"]
    listed = sum(
        split["used"] + sum(reason["count"] for reason in split["dropped"].values()) for split in audits.values()
    )
    assert listed == 48, "every row is used or listed"
