"""The stages `choose` and `selected`: the best candidate on validation prompts, as the training of its row."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefdag.errors import UserError
from prefdag.provenance.manifest import MANIFEST, TRAINING, describe, read_manifest, read_training
from prefdag.reporting.candidates import candidates_rows, candidates_table, protocol
from prefdag.runtime.stage import run_stage
from prefdag.stages import choose, selected

SETTINGS = [{"learning_rate": 0.001}, {"learning_rate": 0.01}]


def write(folder: Path, stage: str, files: dict[str, str], facts: dict | None = None, config: object = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / MANIFEST).write_bytes(describe(folder, stage, config or {}, {}, {}, facts or {}))
    return folder / MANIFEST


def scores(root: Path, name: str, reward: np.ndarray, kl: float) -> Path:
    """Two samples of each prompt around its reward."""
    prompts, samples = np.repeat(np.arange(len(reward)), 2), np.tile([0, 1], len(reward))
    rewards = np.repeat(reward, 2) + np.tile([-0.1, 0.1], len(reward))
    table = pd.DataFrame({"prompt_id": prompts, "sample": samples, "reward": rewards, "kl": kl})
    return write(root / "score" / name, "score", {"scores.csv": table.to_csv(index=False)})


def chosen(
    root: Path, inputs: dict, steps: tuple[int, ...] = (), seeds: int = 2, **choice: object
) -> tuple[dict, pd.DataFrame]:
    config = json.dumps({"choice": choice, "settings": SETTINGS, "steps": steps, "num_seeds": seeds, "seed": 0})
    output = root / "choose/dpo" / MANIFEST
    run_stage("choose", choose, config, {"judges": [], "trainings": [], **inputs}, output)
    return json.loads((output.parent / "choice.json").read_text()), pd.read_csv(output.parent / "candidates.csv")


@pytest.fixture
def inputs(tmp_path: Path) -> dict:
    """SFT has reward 0. At (KL, reward) the first setting has (2, 1) with both seeds, the second (8, 2) and (4, 2)."""
    mood = np.array([-0.2, 0.0, 0.2])
    made = [
        scores(tmp_path, f"c{number}@validation", reward + mood, kl)
        for number, (reward, kl) in enumerate([(1, 2), (1, 2), (2, 8), (2, 4)])
    ]
    return {"scores": made, "start": scores(tmp_path, "sft@validation", mood, 0.0)}


def test_the_reward_within_a_kl_is_on_the_line_to_sft(tmp_path: Path, inputs: dict) -> None:
    """Within 2 nats: 1 against 2/4 and 2/2; within 8 nats: 1 against 2. Each prompt gains the same, so no spread."""
    choice, table = chosen(tmp_path, inputs, criterion="reward_at_kl", kl=2)
    assert choice["setting"] == {"learning_rate": 0.001} and choice["candidate"] == 0
    assert table["reward_at_kl"].tolist() == pytest.approx([1, 0.75]) and table["chosen"].tolist() == [True, False]
    assert table["kl"].tolist() == [2, 6] and table["reward"].tolist() == pytest.approx([1, 2])
    assert (table["low"] < table["reward_at_kl"]).all() and (table["reward_at_kl"] < table["high"]).all()
    choice, table = chosen(tmp_path, inputs, criterion="reward_at_kl", kl=8)
    assert choice["setting"] == {"learning_rate": 0.01} and table["reward_at_kl"].tolist() == pytest.approx([1, 2])


def test_a_candidate_below_sft_gains_nothing_by_being_far_away(
    tmp_path: Path, inputs: dict, capfd: pytest.CaptureFixture[str]
) -> None:
    """SFT has 0. At 1 nat -0.2, and at 100 nats -1, of which the mixture within 2 nats would be -0.02."""
    mood = np.array([-0.2, 0.0, 0.2])
    pairs = [(-1, 100), (-0.2, 1)]
    made = [scores(tmp_path, f"b{at}@validation", mood + reward, kl) for at, (reward, kl) in enumerate(pairs)]
    choice, table = chosen(tmp_path, {**inputs, "scores": made}, seeds=1, criterion="reward_at_kl", kl=2)
    assert table["reward_at_kl"].tolist() == pytest.approx([-1, -0.2]) and choice["candidate"] == 1
    assert choice["sft_reward"] == pytest.approx(0)
    log = (tmp_path / "choose/dpo/log.txt").read_text() if (tmp_path / "choose/dpo/log.txt").is_file() else ""
    assert "the chosen candidate has reward -0.2, no more than SFT's" in capfd.readouterr().err + log


def test_a_win_rate_is_that_of_the_headline_judge(tmp_path: Path, inputs: dict) -> None:
    """The second judge prefers the other setting."""
    judges = []
    for number, verdict in enumerate([0.2, 0.4, 0.6, 0.7]):
        both = {"reward": verdict, "length": 1 - verdict}
        rows = [(judge, prompt, value) for judge, value in both.items() for prompt in range(3)]
        table = pd.DataFrame(rows, columns=["judge", "prompt_id", "verdict"])
        judges.append(write(tmp_path / f"judge/c{number}", "judge", {"verdicts.csv": table.to_csv(index=False)}))
    choice, table = chosen(tmp_path, {**inputs, "judges": judges}, criterion="win_rate")
    assert table["win_rate"].tolist() == pytest.approx([0.3, 0.65]) and choice["candidate"] == 1


def test_the_largest_value_is_chosen_however_wide_its_interval(tmp_path: Path, inputs: dict) -> None:
    """The second setting has less reward on average, and much more on one of three prompts."""
    even, uneven = np.full(3, 1.0), np.array([-0.6, -0.5, 3.8])
    made = [scores(tmp_path, f"w{at}@validation", one, 1.0) for at, one in enumerate([even, even, uneven, uneven])]
    choice, table = chosen(tmp_path, {**inputs, "scores": made}, criterion="reward_at_kl", kl=2)
    assert choice["candidate"] == 0 and table["high"].argmax() == 1


def test_a_held_out_accuracy_is_read_from_the_trainings(tmp_path: Path, inputs: dict) -> None:
    facts = [{"validation_accuracy": value} for value in (0.7, 0.9, 0.6, 0.8)]
    made = [write(tmp_path / f"preference/c{at}", "preference", {}, one) for at, one in enumerate(facts)]
    choice, table = chosen(tmp_path, {**inputs, "trainings": made}, criterion="held_out_accuracy")
    assert table["held_out_accuracy"].tolist() == pytest.approx([0.8, 0.7]) and choice["candidate"] == 0
    assert candidates_rows(candidates_table([tmp_path / "choose/dpo" / MANIFEST]))[0]["measured"]["low"] is None
    made[1] = write(tmp_path / "preference/none", "preference", {}, {})
    with pytest.raises(UserError, match="no accuracy on validation pairs"):
        chosen(tmp_path, {**inputs, "trainings": made}, criterion="held_out_accuracy")


def test_one_validation_prompt_is_refused(tmp_path: Path, inputs: dict) -> None:
    one = scores(tmp_path, "one@validation", np.zeros(1), 0.0)
    with pytest.raises(UserError, match="1 validation prompts, and `select` needs at least 2"):
        chosen(tmp_path, {**inputs, "start": one}, criterion="reward_at_kl", kl=2)


def training(root: Path, name: str, text: str) -> Path:
    files = {"model/model.safetensors": text, "curves.csv": "step,loss\n1,2\n", "checkpoints/4/model.safetensors": text}
    return write(root / "preference" / name, "preference", files, {"validation_loss": 1.0}, {"preference": text})


def test_readers_of_a_selected_training_depend_on_that_training_alone(tmp_path: Path, inputs: dict) -> None:
    """A further candidate changes the manifest, and not what its readers record."""
    chosen(tmp_path, inputs, criterion="reward_at_kl", kl=2)
    choice = [tmp_path / "choose/dpo" / MANIFEST]
    candidates = [training(tmp_path, name, name) for name in ("a", "b")]
    output = tmp_path / "selected/dpo" / MANIFEST

    def link(paths: list[Path]) -> str:
        run_stage("selected", selected, "{}", {"choice": choice, "candidates": paths}, output)
        return output.read_text()

    first = link(candidates)
    assert read_manifest(output).sha256 == read_manifest(candidates[0]).sha256
    assert read_training(output).content == read_manifest(candidates[0]).content
    assert (output.parent / "model/model.safetensors").read_text() == "a"
    assert (output.parent / "model/model.safetensors").samefile(candidates[0].parent / "model/model.safetensors")
    assert not (output.parent / "curves.csv").samefile(candidates[0].parent / "curves.csv")
    assert (output.parent / TRAINING).read_bytes() == candidates[0].read_bytes()
    second = link([candidates[0], training(tmp_path, "c", "c")])
    assert second != first and read_manifest(output).sha256 == read_manifest(candidates[0]).sha256
    link([candidates[1], candidates[0]])
    assert read_manifest(output).sha256 == read_manifest(candidates[1]).sha256
    with pytest.raises(UserError, match="1 manifests, and the choice is of 2"):
        link(candidates[:1])


def stopping(root: Path) -> tuple[list[Path], Path]:
    """Two trainings with checkpoints at step 4, each file of another text; the manifest of `selected`."""
    made = []
    for name in ("a", "b"):
        files = {"model/model.safetensors": f"{name} end", "checkpoints/4/model.safetensors": f"{name} at 4"}
        files |= {"curves.csv": "step,loss\n2,0.7\n4,0.6\n8,0.5\n", "samples.csv": "round,score\n1,2\n4,3\n5,4\n"}
        files |= {"held_out.csv": "prompt\n1\n", "checkpoints/6/model.safetensors": f"{name} at 6"}
        made.append(write(root / "preference" / name, "preference", files, {"kl": 9.0}, {"preference": {"beta": 1}}))
    return made, root / "selected/dpo" / MANIFEST


def test_a_checkpoint_that_is_best_becomes_the_policy(tmp_path: Path, inputs: dict) -> None:
    """Lengths 4 and 8 of each setting, one seed: within 8 nats the rewards are 1, 1, 2, 2; the first 2 is at step 4."""
    choice, table = chosen(tmp_path, inputs, (4, 8), seeds=1, criterion="reward_at_kl", kl=8)
    assert choice["setting"] == {"learning_rate": 0.01, "steps": 4} and choice["candidate"] == 2
    assert (choice["training"], choice["checkpoint"], choice["lengths"]) == (1, 4, 2)
    assert table["steps"].tolist() == [4, 8, 4, 8] and table["learning_rate"].tolist() == [0.001, 0.001, 0.01, 0.01]
    trainings, output = stopping(tmp_path)
    run_stage(
        "selected", selected, "{}", {"choice": [tmp_path / "choose/dpo" / MANIFEST], "candidates": trainings}, output
    )
    policy = read_training(output)
    assert (output.parent / "model/model.safetensors").read_text() == "b at 4"
    assert (output.parent / "checkpoints/6/model.safetensors").read_text() == "b at 6"  # answers of all checkpoints
    assert (output.parent / "curves.csv").read_text() == "step,loss\n2,0.7\n4,0.6\n"
    assert (output.parent / "samples.csv").read_text() == "round,score\n1,2\n4,3\n"
    assert not (output.parent / "held_out.csv").exists() and policy.content["facts"] == {"stopped_at": 4}
    assert policy.content["config"] == {"preference": {"beta": 1}}
    policy.check_weights("")
    policy.check_but_weights()
    assert read_manifest(output).sha256 == policy.sha256 != read_manifest(trainings[1]).sha256
    assert read_manifest(output).content["facts"]["training"] == "preference/b"


def test_a_training_that_is_best_at_its_end_is_passed_on_whole(tmp_path: Path, inputs: dict) -> None:
    """Within 4 nats the rewards are 1, 1, 2 * 4 / 8 and 2."""
    choice, _ = chosen(tmp_path, inputs, (4, 8), seeds=1, criterion="reward_at_kl", kl=4)
    assert choice["setting"] == {"learning_rate": 0.01, "steps": 8} and "checkpoint" not in choice
    trainings, output = stopping(tmp_path)
    run_stage(
        "selected", selected, "{}", {"choice": [tmp_path / "choose/dpo" / MANIFEST], "candidates": trainings}, output
    )
    assert read_training(output).content == read_manifest(trainings[1]).content
    assert read_manifest(output).sha256 == read_manifest(trainings[1]).sha256
    assert (output.parent / "model/model.safetensors").read_text() == "b end"


def test_the_report_names_the_lengths(tmp_path: Path, inputs: dict) -> None:
    chosen(tmp_path, inputs, (4, 8), seeds=1, criterion="reward_at_kl", kl=8)
    table = candidates_table([tmp_path / "choose/dpo" / MANIFEST])
    assert table is not None and table["steps"].tolist() == [4, 8, 4, 8]
    assert table["setting"].tolist()[1:3] == ["learning_rate 0.001, steps 8", "learning_rate 0.01, steps 4"]
    assert table["training"].tolist()[1:3] == ["learning_rate 0.001", "learning_rate 0.01"]
    sentence = protocol([tmp_path / "choose/dpo" / MANIFEST])
    assert "2 settings were trained with 1 seed each, measured at 2 lengths, and the one" in sentence
    assert sentence.endswith("the test prompts saw the chosen training alone, at its checkpoints too.")


def test_the_table_and_the_protocol_of_the_report(tmp_path: Path, inputs: dict) -> None:
    chosen(tmp_path, inputs, criterion="reward_at_kl", kl=2)
    path = tmp_path / "choose/dpo" / MANIFEST
    table = candidates_table([path])
    assert table is not None and candidates_table([]) is None
    assert table["setting"].tolist() == ["learning_rate 0.001", "learning_rate 0.01"]
    assert protocol([path]) == (
        "Of each row, 2 settings were trained with 2 seeds each, and the one of largest mean reward within 2 nats of "
        "SFT (a candidate further away counts as its mixture with SFT that stays within) on 3 validation prompts was "
        "chosen, averaged over its seeds, of equal ones the first; the test prompts saw the chosen setting alone."
    )


def test_few_prompts_are_warned_of_and_of_equal_candidates_the_first_is_chosen(
    tmp_path: Path, inputs: dict, capfd: pytest.CaptureFixture[str]
) -> None:
    same = [inputs["scores"][0]] * 4
    choice, _ = chosen(tmp_path, {**inputs, "scores": same}, criterion="reward_at_kl", kl=2)
    assert choice["candidate"] == 0
    log = (tmp_path / "choose/dpo/log.txt").read_text() if (tmp_path / "choose/dpo/log.txt").is_file() else ""
    assert "choose: 3 validation prompts are few" in capfd.readouterr().err + log
