"""Samples and scores become token stores of pairs; what is left out is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.provenance.journal import Journal
from prefdag.runtime.stage import Workspace
from prefdag.stages.pairing import Job, run

# Scores of the samples by prompt; None: one that did not end.
SAMPLES = {0: [0.0, 1.0, 3.0], 1: [2.0, 2.0, 2.0], 2: [None, None, 1.0], 3: [5.0, None, 4.0]}


def write(folder: Path, samples: dict[int, list], held_out: tuple[int, ...] = ()) -> dict[str, Path]:
    """Write the two inputs of a job, as `generate` and `score` do; a token is 10 * prompt + sample."""
    folder.mkdir(exist_ok=True)
    rows, table = [], ["prompt_id,sample,reward"]
    for prompt, scores in samples.items():
        for number, score in enumerate(scores):
            row = {"prompt_id": prompt, "sample": number, "prompt": f"p{prompt}", "response": f" r{number}"}
            row |= {"prompt_ids": [1, prompt], "ids": [10 * prompt + number], "ended": score is not None}
            rows.append(json.dumps({**row, "split": "validation" if prompt in held_out else "train"}))
            table.append(f"{prompt},{number},{0.0 if score is None else score}")
    (folder / "generations.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "scores.csv").write_text("\n".join(table) + "\n")
    return {"generations": folder / "manifest.json", "scores": folder / "manifest.json"}


def pairs_of(folder: Path, samples: dict[int, list] = SAMPLES, *, number: int = 1, seed: int = 0, **pairing):
    """Run the stage; return its counts and its pairs, as sample numbers by prompt."""
    output = folder / f"out{len(list(folder.glob('out*')))}"
    output.mkdir(parents=True)
    journal = Journal(folder / f"{output.name}.jsonl", root=folder, stage="pairing", name="x@round1")
    workspace = Workspace("pairing", "x@round1", output, folder / "resume", journal, {})
    job = Job.parse({"pairing": pairing, "column": "reward", "seed": seed, "round": number}, "test")
    facts = run(job, workspace, **write(folder / "in", samples, held_out=(3,)))
    stores = [Store.open(output / split) for split in ("train", "validation")]
    pairs = [
        (int(store.prompts[at]), *(int(ids[0]) % 10 for ids in store[at].responses))
        for store in stores
        for at in range(len(store))
    ]
    return facts, pairs, stores


def test_max_min_pairs_and_what_is_left_out(tmp_path: Path):
    facts, pairs, stores = pairs_of(tmp_path, law="max_min")
    assert pairs == [(0, 2, 0), (3, 0, 2)]
    assert facts["train"] == {"prompts": 3, "pairs": 1, "unfinished": 2, "short": 1, "tied": 1}
    assert facts["validation"] == {"prompts": 1, "pairs": 1, "unfinished": 1, "short": 0, "tied": 0}
    assert np.array_equal(stores[0].scores, [[3.0, 0.0]])
    assert stores[0][0].prompt.tolist() == [1, 0]
    text = json.loads((tmp_path / "out0/pairs.jsonl").read_text().splitlines()[0])
    assert (text["responses"], text["samples"], text["scores"]) == ([" r2", " r0"], [2, 0], [3.0, 0.0])


def test_margin_pairs_exceed_the_threshold(tmp_path: Path):
    assert pairs_of(tmp_path, law="margin", threshold=1.0)[1] == [(0, 2, 0), (0, 2, 1)]
    assert len(pairs_of(tmp_path, law="margin", threshold=0.0)[1]) == 4


def test_best_of_n_keeps_every_prompt_with_a_finished_sample(tmp_path: Path):
    assert [pair[:2] for pair in pairs_of(tmp_path, law="best_of_n")[1]] == [(0, 2), (1, 0), (2, 2), (3, 0)]


def test_labels_are_keyed_by_pair_seed_and_round(tmp_path: Path):
    """A larger threshold leaves the labels of the pairs that remain; another round or seed draws others."""
    samples = {prompt: [0.0, 0.5, 1.2] for prompt in (*range(40), 41)}
    law = {"law": "margin", "labels": "bradley_terry"}
    wide = pairs_of(tmp_path, samples, threshold=0.0, **law)[1]
    narrow = pairs_of(tmp_path, samples, threshold=1.0, **law)[1]
    assert len(wide) == 3 * len(narrow) and set(narrow) < set(wide)
    flipped = sum(pair[1] == 0 for pair in narrow) / len(narrow)
    assert 0.05 < flipped < 0.5  # 1 - s(1.2) = 0.23
    assert pairs_of(tmp_path, samples, threshold=1.0, number=2, **law)[1] != narrow
    assert pairs_of(tmp_path, samples, threshold=1.0, seed=1, **law)[1] != narrow
    backwards = dict(reversed(samples.items()))
    assert sorted(pairs_of(tmp_path, backwards, threshold=1.0, **law)[1]) == sorted(narrow)


def test_rejection_sampling_of_a_prompt_does_not_depend_on_the_others(tmp_path: Path):
    samples = {prompt: [float(number % 7) for number in range(10)] for prompt in (0, 1, 2)}
    law = {"law": "rso", "beta": 1.0, "keep": 4}
    whole = pairs_of(tmp_path, samples, **law)[1]
    alone = pairs_of(tmp_path, {1: samples[1]}, **law)[1]
    assert alone == [pair for pair in whole if pair[0] == 1]
    assert {pair[1:] for pair in whole if pair[0] == 0} != {pair[1:] for pair in alone}


def test_another_round_accepts_other_samples(tmp_path: Path):
    samples = {prompt: [float(number % 7) for number in range(10)] for prompt in range(6)}
    law = {"law": "rso", "beta": 1.0, "keep": 4}
    rounds = [tuple(pairs_of(tmp_path, samples, number=number, **law)[1]) for number in (1, 2, 3)]
    assert len(set(rounds)) == 3 and tuple(pairs_of(tmp_path, samples, number=2, **law)[1]) == rounds[1]


def test_every_pair_of_a_prompt_has_a_label_of_its_own(tmp_path: Path):
    """Scores nearly equal: each of a prompt's three pairs is turned by half a chance, and rarely all three or none."""
    samples = {prompt: [0.0, 1e-3, 2e-3] for prompt in (*range(40), 41)}
    pairs = pairs_of(tmp_path, samples, law="margin", threshold=0.0, labels="bradley_terry")[1]
    turned = {prompt: [chosen < other for number, chosen, other in pairs if number == prompt] for prompt in samples}
    shares = [sum(each) for each in turned.values() if len(each) == 3]
    assert len(shares) >= 40 and sum(share in (1, 2) for share in shares) > 20


def test_no_pair_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"x@round1: no pairs: of 2 training prompts, 1 have .* and 1 have scores"):
        pairs_of(tmp_path, {1: SAMPLES[1], 2: SAMPLES[2]}, law="max_min")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_reward_that_is_not_finite_is_named(tmp_path: Path, value: str):
    with pytest.raises(UserError, match=rf"scores.csv: prompt 0 sample 1: the reward is {value}, which orders no pair"):
        pairs_of(tmp_path, {0: [0.0, value, 3.0]}, law="max_min")


def test_scores_of_other_samples_are_refused(tmp_path: Path):
    paths = write(tmp_path / "in", SAMPLES)
    other = write(tmp_path / "other", {0: SAMPLES[0]})
    journal = Journal(tmp_path / "j.jsonl", root=tmp_path, stage="pairing")
    workspace = Workspace("pairing", None, tmp_path, tmp_path, journal, {})
    job = Job.parse({"pairing": {"law": "max_min"}, "column": "reward", "seed": 0, "round": 1}, "test")
    with pytest.raises(UserError, match="its rows are not those of"):
        run(job, workspace, generations=paths["generations"], scores=other["scores"])
