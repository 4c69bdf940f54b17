"""`prefdag compare`: paired by prompt, over seeds where there are several, by arithmetic that a reader can redo."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from manifests import bare
from prefdag.cli.main import main
from prefdag.evaluation.over_seeds import ONE_SEED


def scored(results: Path, name: str, rewards: list[float], prompts: list[int] | None = None, **config: Any) -> Path:
    """score/<name> with a row a prompt, its length ten times its number, and a manifest of the run's training."""
    folder = results / "score" / name
    folder.mkdir(parents=True)
    rows = [f"{p},0,{r},{10 * p}\n" for p, r in zip(prompts or range(len(rewards)), rewards)]
    (folder / "scores.csv").write_text("prompt_id,sample,reward,length\n" + "".join(rows))
    training = results / "preference" / name
    training.mkdir(parents=True)
    (training / "manifest.json").write_text(bare("preference", config=config))
    return folder


def answered(results: Path, name: str, texts: list[str]) -> None:
    folder = results / "generate" / name
    folder.mkdir(parents=True)
    rows = [{"prompt_id": n, "sample": 0, "prompt": text, "response": "r"} for n, text in enumerate(texts)]
    (folder / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs a (1, 2, 3, 4), b (0, 2, 2, 5), and a row c of seeds 0 and 1, which are a and b over again."""
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results/toy"
    scored(results, "a", [1, 2, 3, 4], objective={"method": "dpo", "beta": 0.1}, preference={"seed": 0})
    scored(results, "b", [0, 2, 2, 5], objective={"method": "dpo", "beta": 0.3}, preference={"seed": 0})
    scored(results, "c-seed0", [1, 2, 3, 4], objective={"method": "ipo"}, preference={"seed": 0})
    scored(results, "c-seed1", [0, 2, 2, 5], objective={"method": "ipo"}, preference={"seed": 1})
    return results


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["compare", *arguments]) == 0
    return capsys.readouterr().out


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return json.loads(printed(capsys, *arguments, "--json"))


def test_two_runs_are_paired_by_prompt(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences 1, 0, 1, -1: mean 1/4, s^2 = (3 - 4/16) / 3, s / 2 = 0.479; won, tied, won, lost: 5/8."""
    got = result(capsys, "a", "b")
    reward = got["columns"]["reward"]
    assert (got["prompts"], reward["a"], reward["b"], reward["difference"]["mean"]) == (4, 2.5, 2.25, 0.25)
    assert reward["difference"]["se"] == pytest.approx((2.75 / 3) ** 0.5 / 2)
    assert reward["difference"]["low"] < 0 < reward["difference"]["high"]
    assert got["win_rate"]["mean"] == 0.625
    assert got["columns"]["length"]["difference"] == {"mean": 0, "low": 0, "high": 0, "se": 0, "n": 4}
    assert got["configs"] == {"training.objective.beta": {"a": 0.1, "b": 0.3}}


def test_the_other_way_round_is_the_mirror_image(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = result(capsys, "a", "b"), result(capsys, "b", "a")
    assert there["win_rate"]["mean"] + back["win_rate"]["mean"] == 1
    low, high = (back["columns"]["reward"]["difference"][key] for key in ("low", "high"))
    assert there["columns"]["reward"]["difference"]["low"] == pytest.approx(-high)
    assert there["columns"]["reward"]["difference"]["high"] == pytest.approx(-low)


def test_a_row_stands_for_its_seeds(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """c is a and b: against a its mean is (2.5 + 2.25) / 2, it ties with the one (1/2) and has 3/8 with the other."""
    got = result(capsys, "c", "a")
    assert [Path(folder).name for folder in got["a"]["folders"]] == ["c-seed0", "c-seed1"]
    assert got["columns"]["reward"]["a"] == 2.375
    assert got["win_rate"]["mean"] == (0.5 + 0.375) / 2
    assert got["configs"]["seeds"] == {"a": "0, 1", "b": None} and "training.preference.seed" not in got["configs"]
    assert f"intervals over seeds and prompts; {ONE_SEED}" in printed(capsys, "c", "a"), "a has one"
    assert result(capsys, "c-seed0", "a")["columns"]["reward"]["difference"]["mean"] == 0


def test_no_star_where_a_side_has_one_seed(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """d is above c by 5 to 7 at every prompt: a star over two seeds a side, the words where a side has one."""
    scored(suite, "d-seed0", [7, 8, 9, 10])
    scored(suite, "d-seed1", [7, 8, 9, 10.5])
    stars = [line for line in printed(capsys, "d", "c").splitlines() if "] *" in line]
    assert len(stars) == 1 and "reward" in stars[0] and ONE_SEED not in printed(capsys, "d", "c")
    for pair in (("d", "a"), ("d-seed0", "a")):
        text = printed(capsys, *pair)
        assert "] *" not in text and ONE_SEED in text
        assert result(capsys, *pair)["one_seed"] == ONE_SEED
        rows = list(csv.DictReader(io.StringIO(printed(capsys, *pair, "--csv"))))
        assert {row["note"] for row in rows} == {ONE_SEED}
    assert result(capsys, "d", "c")["one_seed"] is None


def test_tables(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "a", "b")
    assert "4 prompts" in text and "+0.250" in text and "win rate of A over B by reward: 0.625" in text
    assert "training.objective.beta" in text
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "a", "b", "--csv"))))
    assert [row["column"] for row in rows] == ["reward", "length", "win_rate"]
    assert (float(rows[0]["difference"]), float(rows[2]["a"]), float(rows[2]["difference"])) == (0.25, 0.625, 0.25)


def test_several_samples_against_one(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two samples a prompt, 0 and 6: prompt means are 3; each is held against the one answer of a: lost and won."""
    folder = suite / "score/two"
    folder.mkdir()
    rows = [f"{p},{s},{6 * s},1\n" for p in range(4) for s in range(2)]
    (folder / "scores.csv").write_text("prompt_id,sample,reward,length\n" + "".join(rows))
    got = result(capsys, "two", "a")
    assert (got["columns"]["reward"]["difference"]["mean"], got["win_rate"]["mean"]) == (0.5, 0.5)


def test_by_path_across_suites(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers of prompts are not the same prompts: their texts decide, where they are known."""
    other = scored(suite.parent / "other", "a", [2, 3, 4, 5])
    got = result(capsys, str(other), str(suite / "score/a"))
    assert got["columns"]["reward"]["difference"]["mean"] == 1 and got["win_rate"]["mean"] == 1
    answered(suite, "a", ["p0", "p1", "p2", "p3"])
    answered(suite.parent / "other", "a", ["p0", "p1", "another", "p3"])
    assert main(["compare", str(other), str(suite / "score/a")]) == 2
    assert "prompt 2 reads differently" in capsys.readouterr().err


def test_mistakes_are_sentences(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(suite, "fewer", [1, 2], prompts=[0, 9])
    (suite / "score/broken").mkdir()
    (suite / "score/broken/scores.csv").write_text("prompt_id,sample,reward\n0,0,good\n")

    def output(*arguments: str) -> str:
        assert main(["compare", *arguments]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        return err

    assert "is on only one side" in output("a", "fewer")
    assert "nothing: no folder with a scores.csv" in output("a", "nothing") and "there are a, b" in output(
        "a", "nothing"
    )
    assert "not a table of scores" in output("broken", "a")
    scored(suite.parent / "other", "a", [2, 3])
    scored(suite.parent / "other", "b", [2, 3])
    assert "a and b are in several suites" in output("a", "b")
    assert main(["compare", "a", "b", "--results", str(suite)]) == 0
    scored(suite.parent / "third", "d", [2, 3])
    assert "a and d are not in one suite" in output("a", "d")
