"""judge and report on a made-up results folder: the page, its tables and figures, and that equal inputs give equal bytes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from prefdag.config.judge import Judge
from prefdag.errors import UserError
from prefdag.figures import method_styles
from prefdag.figures_training import smoothed
from prefdag.seeds import generator
from prefdag.stages import judge, report
from prefdag.statistics import summarise
from prefdag.store import StoreWriter
from prefdag.tables import FIRST_COLUMNS, compared, group, runs_table, title

METRICS = ("reward", "kl", "k1", "k3", "length", "distinct1", "distinct2", "untrained", "trained")
ATTACK = '<script>alert("owned")</script>'


def spec(name: str, method: str, seed: int = 0, **objective: object) -> dict:
    return {"name": name, "method": method, "seed": seed, "objective": {"method": method, **objective}}


RUNS = [
    *(spec(f"dpo-beta{beta}-seed0", "dpo", beta=beta) for beta in (0.05, 0.1, 0.3, 1.0)),
    *(spec(f"dpo-beta0.1-seed{seed}", "dpo", seed, beta=0.1) for seed in (1, 2)),
    *(spec(f"ipo-beta{beta}-seed0", "ipo", beta=beta, logprob="summed") for beta in (0.1, 0.5)),
    spec("cdpo-seed0", "cdpo", beta=0.1, label_smoothing=0.1),
    spec("simpo-seed0", "simpo", beta=2.0, gamma_beta_ratio=0.25),
    spec("preferred-ft-seed0", "preferred_ft"),
    spec("unlikelihood-seed0", "unlikelihood", alpha=0.5),
]
SOME = [run for run in RUNS if run["name"].startswith(("dpo-beta0.1", "dpo-beta0.3", "simpo"))]  # drawing takes seconds
DRIFT = {  # (KL in nats, reward) that each policy is drawn around
    "base": (11.0, -0.02),
    "sft": (0.0, 0.12),
    "dpo-beta0.05-seed0": (31.0, 0.71),
    "dpo-beta0.1-seed0": (16.0, 0.68),
    "dpo-beta0.1-seed1": (14.5, 0.65),
    "dpo-beta0.1-seed2": (17.6, 0.69),
    "dpo-beta0.3-seed0": (6.1, 0.55),
    "dpo-beta1.0-seed0": (1.7, 0.36),
    "ipo-beta0.1-seed0": (9.0, 0.57),
    "ipo-beta0.5-seed0": (2.6, 0.37),
    "cdpo-seed0": (11.5, 0.6),
    "simpo-seed0": (22.0, 0.5),
    "preferred-ft-seed0": (1.1, 0.22),
    "unlikelihood-seed0": (48.0, 0.05),
}


def score_table(policy: str, num_prompts: int, num_samples: int = 2) -> pd.DataFrame:
    """Scores whose two samples a prompt resemble one another, as real ones do."""
    rng, (kl, reward) = generator(0, policy), DRIFT[policy]
    num = num_prompts * num_samples
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    mood = np.repeat(generator(0, "prompts").normal(0, 0.25, num_prompts), num_samples)
    rewards = np.tanh(reward + mood + rng.normal(0, 0.35, num)).round(2)
    kls = kl * rng.gamma(6, 1 / 6, num)
    return pd.DataFrame(
        {
            "prompt_id": prompts,
            "sample": np.tile(np.arange(num_samples), num_prompts),
            "reward": rewards,
            "untrained": rng.normal(0.03, 0.2, num),
            "trained": 2.4 * rewards + rng.normal(0, 0.8, num),
            "kl": kls,
            "k1": kls + rng.normal(0, 1, num),
            "k3": kls + rng.exponential(0.5, num),
            "length": rng.poisson(22 + 0.4 * kl, num).clip(1, 48),
            "distinct1": rng.beta(18, 3, num),
            "distinct2": rng.beta(40, 2, num),
        }
    )


def write_scores(folder: Path, table: pd.DataFrame, name: str, with_reward_model: bool) -> Path:
    folder.mkdir(parents=True)
    metrics = [metric for metric in METRICS if with_reward_model or "trained" not in metric]
    table = table[["prompt_id", "sample", *metrics]]
    table.to_csv(folder / "scores.csv", index=False)
    means = {m: summarise(table[m], table["prompt_id"], seed=name, bootstrap=200).to_dict() for m in metrics}
    (folder / "summary.json").write_text(json.dumps(means))
    return touched(folder)


def touched(folder: Path) -> Path:
    (folder / "manifest.json").write_text("{}")
    return folder / "manifest.json"


def write_generations(folder: Path, policy: str, num_prompts: int, num_samples: int = 2) -> Path:
    folder.mkdir(parents=True)
    rng = generator(0, f"words {policy}")
    words = ["the", "a", "fine", "dull", "film", "was", "and", "with", "quiet", "brilliant", "tired", "warm", "never"]
    with (folder / "generations.jsonl").open("w") as stream:
        for prompt in range(num_prompts):
            for sample in range(num_samples):
                text = " ".join(rng.choice(words, rng.integers(12, 30)))
                response = ATTACK if (policy, prompt) == ("sft", 0) else "" if (policy, prompt) == ("base", 0) else text
                about = {
                    "prompt_id": prompt,
                    "sample": sample,
                    "prompt": f"Review {prompt}: I went in expecting & found",
                }
                stream.write(json.dumps({**about, "response": response, "ended": bool(rng.random() < 0.8)}) + "\n")
    return touched(folder)


def write_curves(folder: Path, run: dict, num_steps: int) -> Path:
    folder.mkdir(parents=True)
    rng, kl = generator(0, f"curve {run['name']}"), DRIFT[run["name"]][0]
    step = np.arange(1, num_steps + 1)
    rise = kl * (1 - np.exp(-step / (num_steps / 3)))
    chosen, rejected = 0.15 * rise - 0.1 * kl * step / num_steps, -0.9 * rise
    chosen, rejected = (side + rng.normal(0, 0.05 * kl + 0.1, num_steps) for side in (chosen, rejected))
    curve = pd.DataFrame({"step": step, "loss": np.log1p(np.exp(-0.1 * (chosen - rejected)))})
    if run["method"] not in ("simpo", "preferred_ft"):
        curve = curve.assign(chosen_logratio=chosen, rejected_logratio=rejected)
    curve["margin"] = chosen - rejected
    curve["accuracy"] = (0.5 + 0.35 * (1 - np.exp(-step / 40)) + rng.normal(0, 0.05, num_steps)).clip(0, 1)
    curve["chosen_logprob"], curve["rejected_logprob"] = chosen - 62, rejected - 60
    curve.to_csv(folder / "curves.csv", index=False)
    return touched(folder)


def write_comparisons(folder: Path, num: int) -> Path:
    rng = generator(0, "lengths")
    with StoreWriter(folder / "train", num_responses=2, scored=False) as writer:
        for row in range(num):
            chosen, rejected = rng.poisson(24, 2).clip(1, 48)
            writer.add([1] * 6, [[2] * int(chosen), [3] * int(rejected)], row=row, prompt=row)
    return touched(folder)


def write_reward(folder: Path) -> Path:
    folder.mkdir()
    before = {"accuracy": 0.512, "mean": 0.031, "std": 0.204, "n": 400}
    after = {"accuracy": 0.764, "mean": 0.942, "std": 1.533, "n": 400}
    (folder / "evaluation.json").write_text(json.dumps({"before": before, "after": after}))
    return touched(folder)


class Journal:
    def __init__(self) -> None:
        self.artifacts: list[str] = []
        self.values: dict = {}

    def artifact(self, path: Path, as_: str) -> None:
        assert path.is_file()
        self.artifacts.append(as_)

    def metrics(self, step: int, values: dict) -> None:
        self.values = values


def workspace(output: Path) -> SimpleNamespace:
    output.mkdir(parents=True)
    return SimpleNamespace(output=output, journal=Journal())


def write_results(root: Path, runs: list[dict], num_prompts: int, num_steps: int, reward: bool = True) -> dict:
    """A results folder of base, sft and `runs`; returns the inputs of the report stage."""
    policies = ["base", "sft", *(run["name"] for run in runs)]
    tables = {policy: score_table(policy, num_prompts) for policy in policies}
    scores = [write_scores(root / "score" / name, table, name, reward) for name, table in tables.items()]
    judges = []
    for path in scores:
        if path.parent.name != "sft":
            here = workspace(root / "judge" / path.parent.name)
            judge.run(
                judge.Job(judge=Judge(bootstrap=200)), here, scores=path, against=root / "score/sft/manifest.json"
            )
            judges.append(touched(here.output))
    return {
        "scores": scores,
        "judges": judges,
        "generations": [write_generations(root / "generate" / name, name, num_prompts) for name in policies],
        "preferences": [write_curves(root / "preference" / run["name"], run, num_steps) for run in runs],
        "reward": write_reward(root / "reward") if reward else None,
        "comparisons": write_comparisons(root / "prepare" / "comparisons", 10 * num_prompts),
    }


def made(output: Path, inputs: dict, runs: list[dict], **settings: object) -> SimpleNamespace:
    here = workspace(output)
    settings = {"reward_label": "ground-truth reward (VADER compound)", **settings}
    report.run(report.Job.parse({"report": settings, "suite": "toy", "runs": runs}, "test"), here, **inputs)
    return here


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, SimpleNamespace]:
    root = tmp_path_factory.mktemp("results")
    inputs = write_results(root, SOME, num_prompts=60, num_steps=60)
    return inputs, made(root / "report", inputs, SOME)


def test_equal_inputs_give_equal_bytes(results, tmp_path):
    """Page, table and every PNG and SVG: no time, no random id, no version of a library."""
    inputs, first = results
    second = made(tmp_path / "again", inputs, SOME)
    files = sorted(path.relative_to(first.output) for path in first.output.rglob("*") if path.is_file())
    assert len(files) == 2 + 2 * 7
    for name in files:
        assert (first.output / name).read_bytes() == (second.output / name).read_bytes(), name


def test_every_figure_is_png_and_svg(results):
    _, here = results
    names = {"frontier", "logratios", "training", "lengths", "reward_histograms", "reward_boxes", "reward_accuracy"}
    for kind in ("png", "svg"):
        assert {path.stem for path in here.output.glob(f"figures/*.{kind}")} == names
    assert {f"figures/{name}.png" for name in names} | {"index.html", "runs.csv"} == set(here.journal.artifacts)


def test_runs_csv_opens_with_the_promised_columns_and_the_sft_row_has_no_interval(results):
    _, here = results
    table = pd.read_csv(here.output / "runs.csv")
    assert list(table.columns[: len(FIRST_COLUMNS)]) == FIRST_COLUMNS
    assert list(table["run"]) == ["base", "sft", *(run["name"] for run in SOME)]
    sft = table[table["run"] == "sft"].iloc[0]
    assert sft["win_rate"] == 0.5 and np.isnan(sft["win_low"]) and np.isnan(sft["win_high"])
    others = table[table["run"] != "sft"]
    assert (others["win_low"] <= others["win_rate"]).all() and (others["win_rate"] <= others["win_high"]).all()
    assert json.loads(table.loc[table["run"] == "simpo-seed0", "objective"].iloc[0])["gamma_beta_ratio"] == 0.25
    assert set(table["num_prompts"]) == {60} and set(table["num_generations"]) == {120}


def test_runs_csv_repeats_the_summaries(results):
    inputs, here = results
    table = pd.read_csv(here.output / "runs.csv").set_index("run")
    summary = json.loads((inputs["scores"][3].parent / "summary.json").read_text())
    row = table.loc[inputs["scores"][3].parent.name]
    assert (row["reward"], row["reward_low"], row["kl_se"]) == (
        summary["reward"]["mean"],
        summary["reward"]["low"],
        summary["kl"]["se"],
    )


def test_what_a_model_wrote_is_text_and_not_markup(results):
    _, here = results
    page = (here.output / "index.html").read_text()
    assert ATTACK not in page
    assert "&lt;script&gt;alert(" in page
    assert "expecting &amp; found" in page


def test_the_page_needs_no_network_and_no_other_file(results):
    _, here = results
    page = (here.output / "index.html").read_text()
    for word in ("http://", "https://", 'src="f', "<link", "@import"):
        assert word not in page
    assert page.count("data:image/png;base64,") == 7


def test_several_seeds_are_summarised_by_their_range(results):
    _, here = results
    page = (here.output / "index.html").read_text()
    assert page.count("<td>0, 1, 2</td>") == 1 and "DPO β=0.1</th>" in page


def test_without_a_reward_model_its_sections_say_so(tmp_path):
    runs = RUNS[:1]
    inputs = write_results(tmp_path, runs, num_prompts=6, num_steps=3, reward=False)
    here = made(tmp_path / "report", inputs, runs)
    page = (here.output / "index.html").read_text()
    assert "trains no reward model" in page and "not measured" not in page
    assert not list(here.output.glob("figures/reward*"))
    assert pd.read_csv(here.output / "runs.csv")["trained"].isna().all()


def test_a_suite_without_runs_still_has_a_report(tmp_path):
    inputs = write_results(tmp_path, [], num_prompts=6, num_steps=3)
    here = made(tmp_path / "report", inputs, [])
    assert {path.stem for path in here.output.glob("figures/*.png")} >= {"frontier", "lengths"}
    assert 'id="training"' not in (here.output / "index.html").read_text()


def table_of(runs: list[dict]) -> pd.DataFrame:
    one = {metric: {"mean": 1.0, "low": 0.9, "high": 1.1, "se": 0.05, "n": 4} for metric in METRICS}
    names = ["base", "sft", *(run["name"] for run in runs)]
    return runs_table(runs, dict.fromkeys(names, one), {}, dict.fromkeys(names, (2, 4)))


def test_labels_state_what_varies_within_a_method():
    table = table_of(RUNS).set_index("run")
    assert table.loc["dpo-beta0.3-seed0", "display"] == "DPO β=0.3"
    assert table.loc["dpo-beta0.1-seed2", "display"] == "DPO β=0.1 seed 2"
    assert table.loc["simpo-seed0", "display"] == "SimPO"
    assert table.loc["ipo-beta0.5-seed0", "display"] == "IPO β=0.5"  # logprob does not vary
    assert [title("dpo"), title("preferred_ft"), title("tdpo2")] == ["DPO", "Preferred-FT", "TDPO2"]


def test_rows_with_one_objective_are_told_apart_by_name():
    """Two learning rates of one DPO: seeds of neither, and a beta that is equal tells nothing."""
    table = table_of([spec("slow", "dpo", beta=0.1), spec("fast", "dpo", beta=0.1)])
    assert list(table["display"]) == ["base", "SFT", "DPO slow", "DPO fast"]
    assert group(spec("dpo-seed10", "dpo", seed=0)) == "dpo-seed10"


def test_compared_is_the_middle_beta_of_dpo_first():
    """Betas 0.05, 0.1, 0.3, 1: the lower median is 0.1; IPO's 0.1 of 0.1 and 0.5."""
    assert compared(table_of(RUNS), None) == ["dpo-beta0.1-seed0", "ipo-beta0.1-seed0", "cdpo-seed0"]
    assert compared(table_of(RUNS[::-1]), None)[0].startswith("dpo-beta0.1")
    assert compared(table_of(RUNS), ["simpo-seed0"]) == ["simpo-seed0"]
    with pytest.raises(UserError, match="report.compare: nobody is no run of this suite"):
        compared(table_of(RUNS), ["nobody"])


def test_methods_differ_in_colour_or_marker():
    styles = method_styles([f"method{i}" for i in range(30)])
    assert len(set(styles.values())) == 32  # with base and sft


def test_smoothing_shifts_nothing():
    """A straight line stays where it is, but for the ends of the window."""
    line = pd.Series(np.arange(100.0))
    assert (smoothed(line)[5:-5] == line[5:-5]).all()


# judge


def rewards(folder: Path, rows: list[tuple[int, int, float]]) -> Path:
    folder.mkdir()
    text = "prompt_id,sample,reward\n" + "".join(f"{p},{s},{r}\n" for p, s, r in rows)
    (folder / "scores.csv").write_text(text)
    return touched(folder)


def test_judge_matches_by_prompt_and_sample(tmp_path):
    """Rows in another order: 0.5 > 0.1 wins, 0.2 = 0.2 ties, -1 < 0 loses, 3 > 2 wins: 2.5 of 4."""
    ours = rewards(tmp_path / "dpo", [(0, 0, 0.5), (0, 1, 0.2), (7, 0, -1.0), (7, 1, 3.0)])
    theirs = rewards(tmp_path / "sft", [(7, 1, 2.0), (0, 1, 0.2), (0, 0, 0.1), (7, 0, 0.0)])
    here = workspace(tmp_path / "out")
    facts = judge.run(judge.Job(judge=Judge()), here, scores=ours, against=theirs)
    assert (facts["win_rate"], facts["wins"], facts["ties"], facts["losses"], facts["n"]) == (0.625, 2, 1, 1, 4)
    assert json.loads((here.output / "summary.json").read_text()) == facts == here.journal.values
    assert (here.output / "verdicts.csv").read_text().splitlines() == [
        "prompt_id,sample,verdict,reward,against",
        "0,0,1,0.5,0.1",
        "0,1,0.5,0.2,0.2",
        "7,0,0,-1.0,0.0",
        "7,1,1,3.0,2.0",
    ]


def test_judge_taken_the_other_way_round_is_the_mirror_image(tmp_path):
    ours = rewards(tmp_path / "dpo", [(0, 0, 0.5), (1, 0, 0.2), (2, 0, -1.0), (3, 0, 3.0)])
    theirs = rewards(tmp_path / "sft", [(0, 0, 0.1), (1, 0, 0.2), (2, 0, 0.0), (3, 0, 2.0)])
    there = judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "a"), scores=ours, against=theirs)
    back = judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "b"), scores=theirs, against=ours)
    assert there["win_rate"] + back["win_rate"] == 1 and (there["wins"], there["losses"]) == (
        back["losses"],
        back["wins"],
    )


def test_judge_refuses_generations_for_other_prompts(tmp_path):
    ours = rewards(tmp_path / "dpo", [(0, 0, 0.5), (1, 0, 0.2)])
    theirs = rewards(tmp_path / "sft", [(0, 0, 0.5), (2, 0, 0.2)])
    with pytest.raises(UserError, match="prompt 1 sample 0"):
        judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "out"), scores=ours, against=theirs)


def test_judge_refuses_a_reward_that_is_no_number(tmp_path):
    """nan is neither above nor below: it would pass as a tie."""
    ours = rewards(tmp_path / "dpo", [(0, 0, float("nan")), (1, 0, 0.2)])
    with pytest.raises(AssertionError, match="pass as a tie"):
        judge.run(judge.Job(judge=Judge()), workspace(tmp_path / "out"), scores=ours, against=ours)
