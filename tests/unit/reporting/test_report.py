"""The report on a made-up results folder: its page, tables and figures, and that equal inputs give equal bytes."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from manifests import bare
from prefdag.errors import UserError
from prefdag.provenance.manifest import read_manifest
from prefdag.reporting.figures.curves import implicit_rewards, logratios, smoothed, training
from prefdag.reporting.figures.frontier import frontier
from prefdag.reporting.figures.reliability import differences_figure
from prefdag.reporting.figures.style import method_styles
from prefdag.reporting.sections.summary import _lost, origin
from prefdag.reporting.tables import FIRST_COLUMNS, compared, group, runs_table, title
from prefdag.stages.report import Run, _check_lineage, _check_runs
from synthetic_results import ATTACK, METRICS, RUNS, SOME, made, spec, write_results


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
    assert len(files) == 3 + 2 * 17
    for name in files:
        assert (first.output / name).read_bytes() == (second.output / name).read_bytes(), name


def test_every_figure_is_png_and_svg(results):
    _, workspace = results
    names = {"frontier", "frontier_narrow", "logratios", "displacement", "training", "lengths"}
    names |= {"reward_histograms", "reward_boxes", "reward_accuracy"}
    names |= {"reward_training", "implicit_rewards", "calibration", "length_gap", "length_correlation", "gains"}
    names |= {"words", "text_map"}
    for kind in ("png", "svg"):
        assert {path.stem for path in workspace.output.glob(f"figures/*.{kind}")} == names
    figures = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert figures | {"index.html", "runs.csv", "calibration.csv"} == set(workspace.journal.artifacts)


def test_runs_csv_opens_with_the_promised_columns_and_the_sft_row_has_no_interval(results):
    _, workspace = results
    table = pd.read_csv(workspace.output / "runs.csv")
    assert list(table.columns[: len(FIRST_COLUMNS)]) == FIRST_COLUMNS
    assert list(table["run"]) == ["base", "sft", *(run["name"] for run in SOME)]
    sft = table[table["run"] == "sft"].iloc[0]
    assert sft["win_rate"] == 0.5 and np.isnan(sft["win_low"]) and np.isnan(sft["win_high"])
    others = table[table["run"] != "sft"]
    assert (others["win_low"] <= others["win_rate"]).all() and (others["win_rate"] <= others["win_high"]).all()
    assert json.loads(table.loc[table["run"] == "simpo-seed0", "objective"].iloc[0])["gamma_beta_ratio"] == 0.25
    assert set(table["num_prompts"]) == {60} and set(table["num_generations"]) == {120}


def test_runs_csv_repeats_the_summaries(results):
    inputs, workspace = results
    table = pd.read_csv(workspace.output / "runs.csv").set_index("run")
    summary = json.loads((inputs["scores"][3].parent / "summary.json").read_text())
    row = table.loc[inputs["scores"][3].parent.name]
    assert (row["reward"], row["reward_low"], row["kl_se"]) == (
        summary["reward"]["mean"],
        summary["reward"]["low"],
        summary["kl"]["se"],
    )


def test_what_a_model_wrote_is_text_and_not_markup(results):
    _, workspace = results
    page = (workspace.output / "index.html").read_text()
    assert ATTACK not in page
    assert "&lt;script&gt;alert(" in page
    assert "expecting &amp; found" in page
    held_out = page[page.index('<section id="pairs">') :].partition("</section>")[0]
    assert "&lt;script&gt;alert(" in held_out


def test_the_page_needs_no_network_and_no_other_file(results):
    _, workspace = results
    page = (workspace.output / "index.html").read_text()
    for word in ('src="http', 'src="f', "url(", "<link", "@import", "<iframe", "https:"):
        assert word not in page
    assert page.count("data:image/png;base64,") == page.count(" src=") + page.count(" srcset=") == 17
    assert page.count("http:") == 0 and '<a href="../mlflow.html">' in page, "the tracker's page knows the addresses"


def test_several_seeds_are_summarised_by_their_range(results):
    _, workspace = results
    page = (workspace.output / "index.html").read_text()
    assert page.count("<td>0, 1, 2</td>") == 1 and "DPO β=0.1</th>" in page


def test_without_a_reward_model_its_sections_say_so(tmp_path):
    runs = RUNS[:1]
    inputs = write_results(tmp_path, runs, num_prompts=6, num_steps=3, reward=False)
    workspace = made(tmp_path / "report", inputs, runs)
    page = (workspace.output / "index.html").read_text()
    assert "trains no reward model" in page and "not measured" not in page
    assert not list(workspace.output.glob("figures/reward*"))
    left_out = {"calibration", "length_gap"}
    assert not left_out & {path.stem for path in workspace.output.glob("figures/*.png")}
    assert not (workspace.output / "calibration.csv").exists() and 'id="pairs"' not in page
    assert {"length_correlation", "gains", "words"} <= {path.stem for path in workspace.output.glob("figures/*.png")}
    assert pd.read_csv(workspace.output / "runs.csv")["trained"].isna().all()


@pytest.mark.parametrize("reward", [True, False])
def test_ensembles_and_implicit_rewards_are_shown(reward: bool, tmp_path):
    """A row and a bar for each head and each implicit reward, with or without a reward model; columns in runs.csv."""
    runs = RUNS[:2]
    inputs = write_results(tmp_path, runs, num_prompts=6, num_steps=3, reward=reward)
    one = {"accuracy": 0.6875, "accuracy_low": 0.6, "accuracy_high": 0.75, "mean": 0.1, "std": 1.0, "n": 48}
    if reward:
        path = inputs["reward"].parent / "evaluation.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seed 1": one, "seed 4": one}))
    for path in inputs["scores"]:
        summary = json.loads((path.parent / "summary.json").read_text())
        summary["implicit_dpo"] = {"mean": 0.25, "low": 0.2, "high": 0.3, "se": 0.02, "n": 6}
        (path.parent / "summary.json").write_text(json.dumps(summary))
        if path.parent.name == runs[0]["name"]:
            (path.parent / "evaluation.json").write_text(json.dumps({"implicit": one}))
    workspace = made(tmp_path / "report", inputs, runs)
    table = pd.read_csv(workspace.output / "runs.csv")
    assert set(table["implicit_dpo"]) == {0.25} and set(table["implicit_dpo_high"]) == {0.3}
    page = (workspace.output / "index.html").read_text()
    section = page[page.index('<section id="reward">') :].partition("</section>")[0]
    ensemble = ["before training", "after training", "seed 1 alone", "seed 4 alone"] if reward else []
    assert re.findall(r'<th scope="row">(.*?)</th>', section) == [*ensemble, "implicit, DPO β=0.05"]
    assert section.count("68.8% <small>[60.0, 75.0]</small>") == (3 if reward else 1)
    assert ("trains no reward model" in section) == (not reward)
    assert (workspace.output / "figures/reward_accuracy.svg").is_file()


def test_what_the_reward_model_says_of_held_out_comparisons_is_shown(results):
    """The first and the last one, before and after training, to two digits; and the bins of the calibration."""
    inputs, workspace = results
    page = (workspace.output / "index.html").read_text()
    held_out = page[page.index('<section id="pairs">') :].partition("</section>")[0]
    table = pd.read_csv(inputs["reward"].parent / "held_out.csv")
    shown = re.findall(r'<td class="number">(-?[\d.]+)</td>', held_out)
    for row, cells in ((0, shown[:4]), (-1, shown[-4:])):
        one = table.iloc[row]
        names = [f"{when}_{side}" for side in ("chosen", "rejected") for when in ("before", "after")]
        assert cells == [f"{one[name]:.2f}" for name in names]
    bins = pd.read_csv(workspace.output / "calibration.csv")
    assert bins.groupby("reward")["pairs"].sum().to_dict() == {"before training": 600, "after training": 600}


def test_without_a_tokenizer_there_are_no_texts(tmp_path):
    inputs = write_results(tmp_path, RUNS[:1], num_prompts=6, num_steps=3)
    workspace = made(tmp_path / "report", {**inputs, "policy": None}, RUNS[:1])
    page = (workspace.output / "index.html").read_text()
    assert 'id="texts"' not in page and 'id="pairs"' not in page and 'id="reliability"' in page
    assert not {"words", "text_map"} & {path.stem for path in workspace.output.glob("figures/*.png")}


def test_a_suite_without_runs_still_has_a_report(tmp_path):
    inputs = write_results(tmp_path, [], num_prompts=6, num_steps=3)
    workspace = made(tmp_path / "report", inputs, [])
    assert {path.stem for path in workspace.output.glob("figures/*.png")} >= {"frontier", "lengths"}
    assert 'id="training"' not in (workspace.output / "index.html").read_text()


def test_an_on_policy_run_has_its_links_and_doubts_on_the_page(tmp_path):
    inputs = write_results(tmp_path, RUNS[:2], num_prompts=6, num_steps=3)
    name = inputs["preferences"][0].parent.name
    (tmp_path / "policy").mkdir()
    inputs["preferences"][0].parent.rename(tmp_path / "policy" / name)
    inputs["preferences"][0] = tmp_path / "policy" / name / "manifest.json"
    inputs["preferences"][0].write_text(bare(facts={"doubts": ["kl.target: the KL is < 1", "no answer"]}))
    page = (made(tmp_path / "report", inputs, RUNS[:2]).output / "index.html").read_text()
    assert f'href="../policy/{name}/manifest.json"' in page and f'href="../policy/{name}/samples.csv"' in page
    assert f'href="../preference/{RUNS[1]["name"]}/manifest.json"' in page and page.count("/samples.csv") == 1
    assert f"<dt><b>{name}</b></dt><dd>kl.target: the KL is &lt; 1.</dd><dd>no answer.</dd>" in page
    without = write_results(tmp_path / "other", RUNS[:1], num_prompts=6, num_steps=3)
    assert "doubtful" not in (made(tmp_path / "plain", without, RUNS[:1]).output / "index.html").read_text()


def table_of(runs: list[dict], rewards: dict[str, float] | None = None) -> pd.DataFrame:
    entry = {"mean": 1.0, "low": 0.9, "high": 1.1, "se": 0.05, "n": 4}
    names = ["base", "sft", *(run["name"] for run in runs)]
    means = dict.fromkeys(names, 1.0) | (rewards or {})
    reward = {name: entry | {"mean": one, "low": one - 0.1, "high": one + 0.1} for name, one in means.items()}
    summaries = {name: dict.fromkeys(METRICS, entry) | {"reward": reward[name]} for name in names}
    return runs_table(runs, summaries, {}, dict.fromkeys(names, (2, 4)))


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


def test_another_choice_is_another_loss():
    """IPO summed and averaged are two lines, two betas of IPO one; a method that states the choice once has no form."""
    rows = [
        spec("sum", "ipo", beta=0.1, logprob="summed"),
        spec("mean", "ipo", beta=1.0, logprob="averaged"),
        spec("more", "ipo", beta=2.0, logprob="averaged"),
        spec("simpo", "simpo", beta=2.0, loss="sigmoid"),
    ]
    table = table_of(rows, {"mean": 1.5, "more": 2.0}).assign(kl=[0.5, 0, 1, 2, 3, 4], kl_se=0.1)
    assert list(table["form"]) == ["", "", "summed", "averaged", "averaged", ""]
    axes = frontier(table, "reward").axes[0]
    lines = [line.get_xydata().tolist() for line in axes.lines if line.get_alpha() == 0.55]
    assert lines == [[[1, 1]], [[2, 1.5], [3, 2]], [[4, 1]]]
    curve = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5], "margin": [0.0, 1.0], "accuracy": [0.5, 1.0]})
    single = curve[["step", "loss"]]
    figure = training({"sum": curve, "mean": curve, "simpo": single}, table)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert [name for name in titles if name] == ["IPO summed", "IPO averaged", "SimPO"]
    texts = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert texts == [f"no {name}: the loss reads\nsingle responses" for name in ("margin", "accuracy")]


def test_seeds_have_their_mean_marked_and_a_root_axis_says_so():
    """The cross is where the label points, at the mean of two seeds; one KL of 100 makes the axis a root."""
    rows = [spec("dpo-seed0", "dpo", seed=0, beta=0.1), spec("dpo-seed1", "dpo", seed=1, beta=0.1)]
    table = table_of(rows, {"dpo-seed0": 1.0, "dpo-seed1": 2.0})
    axes = frontier(table.assign(kl=[0.5, 0, 1, 3], kl_se=0.1), "reward").axes[0]
    marks = [
        one.get_offsets().tolist() for one in axes.collections if len(one.get_paths()) and one.get_linewidth()[0] == 1.2
    ]
    assert [[2.0, 1.5]] in marks
    assert axes.get_xlabel() == "sequence KL to the reference (nats)"
    axes = frontier(table.assign(kl=[0.5, 0, 1, 100], kl_se=0.1), "reward").axes[0]
    assert axes.get_xlabel() == "sequence KL to the reference (nats, square-root axis)"


def test_the_page_opens_with_what_was_measured_and_what_made_it(results):
    _, workspace = results
    page = (workspace.output / "index.html").read_text()
    lines = re.findall(r"<li>(.*?)</li>", page.partition("</header>")[0], re.S)
    runs = pd.read_csv(workspace.output / "runs.csv")
    trained = runs[~runs["run"].isin(["base", "sft"])]
    best = (
        trained.assign(group=trained["run"].str.replace(r"-seed\d+$", "", regex=True)).groupby("group")["reward"].mean()
    )
    assert len(lines) == 5 and lines[0].startswith(f"{len(trained)} runs of {trained['method'].nunique()} methods")
    assert f"{best.max():.2f}" in lines[2] and lines[2].endswith("It was picked among the settings by this number.")
    assert "0.76 [0.72, 0.81] of held-out pairs right, 0.51 before" in lines[3]
    assert lines[4] == "Made, outside a git repository, so no commit is known."


def test_the_first_sentence_says_that_many_rows_were_lost():
    runs = pd.DataFrame({"run": ["sft", "dpo"], "rows_used": [None, 44], "rows_dropped": [None, 56]})
    assert _lost(runs) == " 56% of the rows for training were dropped, for the reasons below."
    assert _lost(runs.assign(rows_dropped=[None, 4])) == "" and _lost(runs[["run"]]) == "" and _lost(runs[:1]) == ""


def test_the_origin_is_command_and_commit(tmp_path: Path):
    (tmp_path / ".journal").mkdir()
    journal = tmp_path / ".journal/report.jsonl"
    (tmp_path / ".suite.json").write_text('["a.yaml", "b.yaml"]')
    journal.write_text(json.dumps({"git": "0123456789abcdef" * 2 + "-dirty"}) + "\n")
    made_by = "Made by `snakemake --configfile a.yaml b.yaml` at commit 0123456789ab"
    assert origin(journal) == f"{made_by}, with changes that are not committed."
    journal.write_text(json.dumps({"git": "0123456789abcdef" * 2}) + "\n")
    assert origin(journal) == f"{made_by}."


def test_compared_is_the_best_setting_of_dpo_then_of_the_best_other_methods():
    """Of DPO's 0.3 and 0.1 (mean of three seeds 2 and 1.7) 0.3 is shown, then SimPO's 4 and cDPO's 3 before IPO's 1."""
    rewards = {"simpo-seed0": 4.0, "cdpo-seed0": 3.0, "dpo-beta0.3-seed0": 2.0}
    table = table_of(RUNS, rewards | {"dpo-beta0.1-seed0": 3.1})
    assert compared(table, None) == ["dpo-beta0.3-seed0", "simpo-seed0", "cdpo-seed0"]
    assert compared(table_of(RUNS[::-1], rewards), None)[0].startswith("dpo-beta0.3")
    assert compared(table_of(RUNS), ["simpo-seed0"]) == ["simpo-seed0"]
    with pytest.raises(UserError, match="report.compare: absent is no run of this suite"):
        compared(table_of(RUNS), ["absent"])


def test_methods_differ_in_colour_or_marker():
    styles = method_styles([f"method{i}" for i in range(30)])
    assert len(set(styles.values())) == 32  # with base and sft
    assert len({colour for colour, _ in method_styles("abcdefghijkl").values()}) == 14, "one panel holds 12 methods"


def test_smoothing_shifts_nothing():
    """A straight line stays where it is, but for the ends of the window; of 5 batches the variance is 2.5."""
    line = pd.Series(np.arange(100.0))
    mean, half = smoothed(line)
    assert (mean[5:-5] == line[5:-5]).all() and half[50] == pytest.approx(1.96 * (2.5 / 5) ** 0.5)
    assert smoothed(line[:9])[1].isna().all(), "one batch has no interval"


def test_a_run_with_nothing_held_out_has_an_empty_panel():
    curve = pd.DataFrame({"step": [1, 2], "loss": [0.7, 0.6]})
    figure = logratios({"simpo-seed0": curve}, table_of(RUNS))
    assert [len(axes.lines) for axes in figure.axes] == [1]  # the line at zero


def test_implicit_rewards_are_beta_times_log_ratios():
    """Better and worse responses apart; a run without beta, or whose curves have no log-ratio, is left out."""
    curve = pd.DataFrame(
        {"step": [1, 2, 3], "chosen_logratio": [0.0, 1.0, -2.0], "rejected_logratio": [0.0, -4.0, -6.0]}
    )
    held_out = {"held_out_chosen_logratio": [3.0, np.nan, 5.0], "held_out_rejected_logratio": [-1.0, np.nan, -2.0]}
    curves = {"DPO": curve.assign(**held_out), "SimPO": pd.DataFrame({"step": [1]}), "other": curve}
    better, worse = implicit_rewards(curves, {"DPO": 0.1, "SimPO": 2.0}).axes
    assert better.lines[0].get_ydata() == pytest.approx([0, 0.1, -0.2])
    assert worse.lines[0].get_ydata() == pytest.approx([0, -0.4, -0.6])
    assert better.lines[2].get_ydata() == pytest.approx([0.3, 0.5])
    assert implicit_rewards({"SimPO": curves["SimPO"]}, {"SimPO": 2.0}) is None


def test_gains_state_the_share_of_prompts_above_zero():
    """Of 1, -1, 3, 0 half are above 0; the mean is 0.75."""
    figure = differences_figure({"reward": {"DPO": pd.Series([1.0, -1.0, 3.0, 0.0], index=[4, 5, 6, 7])}})
    share, mean = figure.axes[0].get_title(loc="left").splitlines()[1:]
    assert share.startswith("above 0: 50% [") and mean.startswith("mean 0.75 [")
    assert differences_figure({"reward": {}}) is None


def test_a_run_of_other_settings_or_of_another_policy_is_refused(tmp_path):
    """The report of one suite does not mix two learning rates, nor results of two SFT policies."""

    def manifest(folder: str, config: dict, **inputs: str) -> Path:
        path = tmp_path / folder / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(bare(config=config, inputs=inputs))
        return path

    config = {"preference": {"learning_rate": 2e-4}, "objective": {"method": "dpo", "beta": 0.1}}
    sft = manifest("sft", {})
    sha = read_manifest(sft).sha256
    dpo = manifest("preference/dpo", config, policy=sha)
    score = manifest("score/dpo", {}, policy=read_manifest(dpo).sha256, reference=sha)
    row = {"name": "dpo", "method": "dpo", "seed": 0, "objective": {"beta": 0.1}}
    _check_runs([Run(**row, preference={"learning_rate": 2e-4})], {dpo: read_manifest(dpo)})
    with pytest.raises(UserError, match=r"trained with preference.learning_rate 0.0002, .* states 0.0001; run"):
        _check_runs([Run(**row, preference={"learning_rate": 1e-4})], {dpo: read_manifest(dpo)})
    with pytest.raises(UserError, match="trained with objective.beta 0.1, where the suite states 0.5"):
        _check_runs([Run(**{**row, "objective": {"beta": 0.5}}, preference={})], {dpo: read_manifest(dpo)})
    _check_lineage([score], [], [dpo], sft)
    other = manifest("score/sft", {}, policy="0" * 64, reference=sha)
    with pytest.raises(UserError, match=r"score/sft/manifest.json: its policy was not .*/sft/manifest.json"):
        _check_lineage([score, other], [], [dpo], sft)


def test_the_reward_models_scores_are_those_of_held_out_and_of_generated_responses(results):
    """Every held-out response by its rank before and after training, in histograms and in boxes."""
    inputs, workspace = results
    table = pd.read_csv(inputs["reward"].parent / "held_out.csv")
    figure = (workspace.output / "figures/reward_histograms.svg").read_text()
    for side in ("chosen", "rejected"):
        for when in ("before", "after"):
            assert f"held-out {side}, {when} training" in figure
            assert f"mean {table[f'{when}_{side}'].mean():.2f} [" in figure
    boxes = (workspace.output / "figures/reward_boxes.svg").read_text()
    assert all(name in boxes for name in ("held-out chosen", "held-out rejected", "SFT", "before training"))


def test_a_fetched_reward_model_has_scores_without_training(tmp_path):
    """One row of histograms, of the columns that a model without training has."""
    inputs = write_results(tmp_path, SOME, num_prompts=20, num_steps=3)
    folder = inputs["reward"].parent
    table = pd.read_csv(folder / "held_out.csv")
    table.drop(columns=["before_chosen", "before_rejected"]).to_csv(folder / "held_out.csv", index=False)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({"after": evaluation["after"]}))
    (folder / "source.json").write_text("{}")
    figure = (made(tmp_path / "report", inputs, SOME).output / "figures/reward_histograms.svg").read_text()
    assert "held-out chosen, as fetched" in figure and "before training" not in figure
