"""The stage trains the family: pairs, rankings and single responses, scored or not, from files to aligned policies."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_league import scores
from test_mistakes import SCRATCH, _command, _stage, error_of

from prefdag.cli.main import main
from prefdag.config.objectives import objective
from prefdag.data.token_store import Store
from prefdag.provenance.manifest import describe, read_manifest
from prefdag.reporting.figures.curves import logratios, training
from prefdag.reporting.league import league
from prefdag.stages.pairs import write_pairs, write_rankings

ANSWERS = ["good and kind", "fair", "not so good", "bad"]  # of the scores 3, 2, 1, 0
ROWS: dict[str, dict[str, Any]] = {
    "kto": {"method": "kto"},
    "bco": {"method": "bco"},
    "beta_dpo": {"method": "beta_dpo"},
    "aot": {"method": "aot"},
    "wpo": {"method": "wpo"},
    "tdpo2": {"method": "tdpo2"},
    "odpo": {"method": "odpo"},
    "rebel": {"method": "rebel"},
    "orpo": {"method": "orpo", "nll": "per_token"},
    "cpl": {"method": "cpl"},
    "plackett_luce": {"method": "plackett_luce"},
    "nca_k": {"method": "nca_k"},
    "plackett_luce of pairs": {"method": "plackett_luce"},
    "kto of rankings": {"method": "kto"},
}
RANKED = ("plackett_luce", "nca_k", "kto of rankings")


def row(split: str, number: int) -> dict[str, Any]:
    return {"prompt": f"{split} {number}:", "responses": [f"{a} {number}" for a in ANSWERS], "scores": [3, 2, 1, 0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By plain commands up to the caches of both datasets; the policy is hardly trained. One row is of three."""
    folder = tmp_path_factory.mktemp("family") / "suite"
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [row(split, number) for number in range(18 if split == "train" else 8)]
        if split == "train":
            rows[5] = {"prompt": "three:", "responses": ANSWERS[:3], "scores": [2, 1, 0]}
        (raw / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    splits = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    _stage(folder, "fetch/data", {"data": {"source": str(raw), **splits}})
    shape = SCRATCH.model_dump() | {"vocab_size": 300}
    pretrain = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 2}
    _stage(folder, "pretrain", {"adapter": "pairs", "scratch": shape, "pretrain": pretrain}, data="fetch/data")
    prepare = {"adapter": "pairs", "template": "plain", "bos": True, "end_of_turn": "eos", "over_long": "drop"}
    prepare |= {"max_prompt_tokens": 30, "max_response_tokens": 30}
    for dataset in ("comparisons", "rankings"):
        config = {"prepare": prepare, "dataset": dataset}
        _stage(folder, f"prepare/{dataset}", config, rows="fetch/data", tokenizer="pretrain")
        inputs = {"policy": "pretrain", "comparisons": f"prepare/{dataset}"}
        _stage(folder, f"reference/{dataset}", {"reference": {}}, **inputs)
    return folder


def align(folder: Path, name: str, **training: Any) -> list[str]:
    entry, dataset = ROWS[name], "rankings" if name in RANKED else "comparisons"
    settings = {"batch_size": 6, "learning_rate": 1e-2, "max_steps": 3, "tokens_per_batch": 60, **training}
    inputs = {"policy": "pretrain", "comparisons": f"prepare/{dataset}"}
    if "reference" in objective(entry, "tests", name).reads:
        inputs["reference"] = f"reference/{dataset}"
    return _command(folder, f"preference/{name}", {"preference": settings, "objective": entry}, **inputs)


def test_rankings_hold_all_responses_and_their_scores(folder: Path) -> None:
    """17 of 18 rows: the one of three responses is counted; comparisons are the first two of each."""
    rankings, pairs = (Store.open(folder / f"prepare/{name}/train") for name in ("rankings", "comparisons"))
    assert (len(rankings), rankings.num_responses, len(pairs), pairs.num_responses) == (17, 4, 18, 2)
    assert rankings.scores is not None and rankings.scores.tolist() == [[3, 2, 1, 0]] * 17
    assert pairs.scores is not None and pairs.scores[0].tolist() == [3, 2]
    audit = json.loads((folder / "prepare/rankings/audit.json").read_text())
    dropped = {"3 responses, not 4 as the first row has": {"count": 1, "rows": [5]}}
    assert audit["splits"]["train"]["dropped"] == dropped
    assert not (folder / "prepare/rankings/test").exists(), "no ranking is generated from"


def test_sampled_rankings_lie_in_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    """Of what `pairs` wrote: 6 pairs of each prompt are comparisons, its 4 responses in a row are a ranking."""
    suite = tmp_path / "suite"
    (suite / "pairs/rankings").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        prompts = [f"{split} {number}" for number in range(3)]
        scored = [[(score, answer) for score, answer in enumerate(ANSWERS[::-1])]] * 3
        write_pairs(suite / f"pairs/{split}.jsonl", prompts, scored)
        write_rankings(suite / f"pairs/rankings/{split}.jsonl", prompts, scored, 4)
    (suite / "pairs/manifest.json").write_bytes(describe(suite / "pairs", "pairs", {}, {}, {}, None))
    prepare = read_manifest(folder / "prepare/rankings/manifest.json").content["config"]["prepare"]
    for dataset, shape in (("comparisons", (18, 2)), ("rankings", (3, 4))):
        config = {"prepare": {**prepare, "adapter": "world"}, "dataset": dataset}
        _stage(suite, f"prepare/{dataset}", config, rows="pairs", tokenizer=str(folder / "pretrain"))
        store = Store.open(suite / f"prepare/{dataset}/train")
        assert (len(store), store.num_responses) == shape and store.scores is not None
        assert (np.diff(store.scores, axis=1) < 0).all(), "best first"


@pytest.fixture(scope="module")
def curves(folder: Path) -> dict[str, pd.DataFrame]:
    """Every loss trained for three steps of several micro-batches; its curves."""
    curves = {}
    for name in ROWS:
        assert main(align(folder, name)) == 0, name
        curves[name] = pd.read_csv(folder / f"preference/{name}/curves.csv")
    return curves


@pytest.mark.parametrize("name", ROWS)
def test_it_is_trained(name: str, folder: Path, curves: dict[str, pd.DataFrame]) -> None:
    """Three finite steps, the first of the value that the registry states; other weights; held-out means."""
    assert len(curves[name]) == 3 and np.isfinite(curves[name]["loss"]).all()
    entry = objective(ROWS[name], "tests", name)
    if entry.first_step:
        expected = eval(entry.first_step, vars(math) | entry.parameters())
        assert curves[name]["loss"][0] == pytest.approx(expected, abs=1e-4)
    before, after = (
        load_file(folder / f"{stage}/model/model.safetensors") for stage in ("pretrain", f"preference/{name}")
    )
    assert any(not torch.equal(before[key], after[key]) for key in before)
    facts = read_manifest(folder / f"preference/{name}/manifest.json").content["facts"]
    assert math.isfinite(facts["validation_loss"])
    single = entry.responses == "one"
    assert ("validation_desirable_logratio" in facts, "validation_chosen_logprob" in facts) == (single, not single)


def test_what_differs_shows(curves: dict[str, pd.DataFrame]) -> None:
    """A ranking is more than its first pair, and the loss's state is in its curves."""
    assert curves["plackett_luce"]["loss"][0] == pytest.approx(math.log(24), abs=1e-4), "4! orders, equally likely"
    assert curves["plackett_luce of pairs"]["loss"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert {"state_mean", "state_count"} <= set(curves["bco"]) and list(curves["bco"]["state_count"]) == [6, 12, 18]
    assert {"state_mean", "state_std"} <= set(curves["beta_dpo"])


def test_figures_and_league_take_runs_of_every_kind(curves: dict[str, pd.DataFrame]) -> None:
    """Labelled responses have no margin and no chosen log-prob; their displacement is watched on the pairs too."""
    names = ["kto", "bco", "nca_k", "cpl"]
    shown = {name: curves[name] for name in names}
    runs = pd.DataFrame({"run": names, "method": names, "group": names, "label": "", "form": ""})
    assert "margin" not in shown["kto"] and "accuracy" in shown["kto"]
    axes = training(shown, runs).axes
    panels_in_use = [[panel.get_visible() and bool(panel.lines) for panel in axes[3 * k : 3 * k + 3]] for k in range(4)]
    assert panels_in_use == [[True, False, True], [True, False, True], [True] * 3, [True] * 3]
    assert all(len(panel.lines) > 1 for panel in logratios(shown, runs).axes if panel.get_visible())
    tables = {name: scores(0.1, 1.0) for name in names} | {"sft": scores(0.0, 0.0)}
    table = league(runs, tables, shown, (0.5,), bootstrap=10).set_index("method")
    assert table["chosen_logratio"].notna().all() and table["rejected_logratio"].notna().all()


def test_scores_that_are_not_there_are_missed_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Rows without scores; then rows of which some have them, at `prepare`."""
    suite = tmp_path / "suite"
    (suite / "raw").mkdir(parents=True)
    plain = [{key: value for key, value in row("train", n).items() if key != "scores"} for n in range(6)]
    config = read_manifest(folder / "prepare/comparisons/manifest.json").content["config"]
    for rows, sentence in (
        (plain, "rebel reads scores, and these comparisons have none; give rows `scores`, or choose"),
        ([row("train", 6), *plain], ": row 2: only some have scores; give every row scores or none"),
    ):
        (suite / "raw/train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        _stage(suite, "fetch/data", {"data": {"source": str(suite / "raw"), "train": "train.jsonl"}})
        inputs = {"rows": "fetch/data", "tokenizer": str(folder / "pretrain")}
        command = _command(suite, "prepare/comparisons", config, **inputs)
        if rows is plain:
            assert main(command) == 0
            command = align(folder, "rebel")
            at = command.index("--comparisons") + 1
            command[at] = str(suite / "prepare/comparisons/manifest.json")
        assert sentence in error_of(capsys, *command)
