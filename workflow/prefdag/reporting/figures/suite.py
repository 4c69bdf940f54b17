"""Every figure of the report: its section of the page, its title and its caption, in the order of the page."""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prefdag.evaluation.calibration import accuracy_by_length
from prefdag.reporting.figures import answers, curves, distributions, on_policy, reliability, texts
from prefdag.reporting.figures.candidates import candidates
from prefdag.reporting.figures.catalogue import Catalogue
from prefdag.reporting.figures.frontier import frontier as one_panel
from prefdag.reporting.figures.league import frontiers, league_figure
from prefdag.reporting.load import SuiteResults
from prefdag.reporting.rows import win_label
from prefdag.reporting.tables import checkpoints

FIGURES = Catalogue()


@FIGURES.add(
    "Reward of each policy against its KL to the reference",
    "Reward against the sequence KL to the reference (the SFT policy), estimated on each policy's own generations by "
    "the full-vocabulary KL summed along them. Bars: 95% intervals, over prompts for the reward, 1.96 standard errors "
    "for the KL. Lines join the settings of one method in the order of their KL, but not different losses under one "
    "name; a black cross is the mean of several seeds, which the label names; the dashed line is the reward of SFT.",
    section="frontier",
)
def frontier(results: SuiteResults) -> Figure:
    parts = results.runs, results.settings.reward_label, checkpoints(results.answers), results.pool
    return (frontiers if results.has_many_methods else one_panel)(*parts, attainable=results.attainable)


@FIGURES.add("The same with its legend below", "On a narrow screen the page shows it instead.", section="narrow")
def frontier_narrow(results: SuiteResults) -> Figure | None:
    parts = results.runs, results.settings.reward_label, checkpoints(results.answers), results.pool, True
    return None if results.has_many_methods else one_panel(*parts, results.attainable)


@FIGURES.add(
    "Reward at matched KL, displacement, length drift and time per step of every method",
    "From the left: reward at matched KL; mean log-ratio to SFT of held-out chosen and rejected responses at the end "
    "of training; change of the mean length. Bars are 95% intervals over prompts, and over several seeds.",
    section="league",
)
def league(results: SuiteResults) -> Figure | None:
    if results.league is None:
        return None
    sft = results.runs["reward"][results.runs["run"] == "sft"].iloc[0]
    return league_figure(results.league, results.settings.matched_kl, sft, results.settings.reward_label)


FIGURES.add(
    "Candidates of each row on validation prompts",
    "The criterion of every candidate with its 95% interval over validation prompts; filled: chosen; dashed: SFT.",
    section="candidates",
)(candidates)


@FIGURES.add(
    "Win rate of each policy over sampling temperatures",
    "Win rate at each sampling temperature, with 95% intervals over prompts. Marks at one temperature are set apart a "
    "little.",
    section="answers",
)
def temperature(results: SuiteResults) -> Figure | None:
    return answers.by_temperature(results.answers, win_label(results.judging))


@FIGURES.add(
    "Win rate of each run over its training",
    "Win rate of each checkpoint and of the run at its end, from SFT (step 0), with 95% intervals over prompts.",
    section="answers",
)
def over_training(results: SuiteResults) -> Figure | None:
    return answers.over_training(results.answers, win_label(results.judging))


@FIGURES.add(
    "Win rates on the test prompts and on other prompts",
    "Win rates on the suite's own test prompts and on prompts of another distribution, with the same sampling settings "
    "and 95% intervals over prompts.",
    section="other-prompts",
)
def other_prompts(results: SuiteResults) -> Figure | None:
    return answers.on_other_prompts(results.answers, win_label(results.judging))


@FIGURES.add(
    "Log-ratios of chosen and rejected responses over training",
    "Summed log-ratio to the SFT policy of chosen (solid) and rejected (dashed) responses, the mean over the same "
    "held-out comparisons at every measurement, unscaled by beta, whether or not the method reads a reference. Seeds "
    "of one setting share a colour.",
    section="training",
)
def logratios(results: SuiteResults) -> Figure | None:
    # Single held-out responses are not measured during training.
    of_singles = [
        "desirable_logratio" in one and "held_out_chosen_logratio" not in one for one in results.curves.values()
    ]
    return None if all(of_singles) else curves.logratios(results.curves, results.runs)


@FIGURES.add(
    "Share of held-out pairs whose chosen response became less likely",
    "Share of the same comparisons whose chosen response is less likely than under SFT, with 95% Wilson intervals over "
    "prompts. Above the dashed line more chosen responses were pushed down than up, though every loss prefers them; "
    "Preferred-FT too raises those of the training set, and takes from all other texts, held-out ones among them.",
    section="training",
)
def displacement(results: SuiteResults) -> Figure | None:
    if not results.curves:
        return None
    held_out = (results.inputs.comparisons.parent / "validation").is_dir()
    prompts = np.asarray(results.store("validation").prompts).tolist() if held_out else []
    return curves.displacement(results.curves, results.runs, prompts)


@FIGURES.add(
    "Loss, margin and accuracy over training",
    "Loss, margin (chosen minus rejected) and accuracy (share of comparisons with a positive margin, ties half) on "
    "training batches. Margins are of sums, without a reference of means; a loss of single responses has none. Thin:"
    " every step; thick: a centred mean over a twentieth of the steps, with its 95% interval. Losses and margins of "
    "different rows are different quantities.",
    section="training",
)
def training(results: SuiteResults) -> Figure | None:
    runs = results.runs
    if not results.curves:
        return None
    if results.has_many_methods:
        runs = runs[runs["method"].isin(runs["method"][runs["run"].isin(results.shown)])]
    shown = {name: curve for name, curve in results.curves.items() if name in set(runs["run"])}
    return curves.training(shown, runs)


@FIGURES.add(
    "On-policy training: reward against KL, and what each round measures",
    "From the left: mean score of a round's responses against their sequence KL to the reference, along training (the "
    "dot is the last round); score, KL, entropy and length by round. Lines are means over a tenth of the rounds.",
    section="training",
)
def on_policy_training(results: SuiteResults) -> Figure | None:
    return on_policy.training(results.online) if results.online else None


@FIGURES.add(
    "Distributions of response lengths",
    "Counted tokens per response, in the training comparisons (light) and in generations on test prompts (dark); "
    "heights are shares of each set, the line is the median, and the last bin holds everything longer.",
    section="lengths",
)
def lengths(results: SuiteResults) -> Figure:
    store = results.store("train")
    tokens = np.diff(np.asarray(store.offsets), axis=1)[:, 1:]
    number = store.num_responses
    names = ["chosen", "rejected"] if number == 2 else [f"rank {k + 1}" for k in range(number)]
    prompts = np.asarray(store.prompts)
    data = {f"{name}, training data": (tokens[:, k], prompts) for k, name in enumerate(names)}
    if number == 1 and store.scores is not None:
        good = np.asarray(store.scores)[:, 0] == 1
        sides = {"desirable": good, "undesirable": ~good}
        data = {f"{name}, training data": (tokens[at, 0], prompts[at]) for name, at in sides.items() if at.any()}
    generated = {
        f"generated by {results.display[name]}": (table["length"].to_numpy(), table["prompt_id"].to_numpy())
        for name, table in ((name, results.tables[name]) for name in results.shown)
    }
    return distributions.lengths({**data, **generated}, len(data))


@FIGURES.add(
    "Held-out accuracy of each reward",
    "Share of held-out comparisons whose chosen response scores higher, with 95% intervals over prompts.",
    section="reward",
)
def reward_accuracy(results: SuiteResults) -> Figure | None:
    return distributions.reward_accuracy(results.accuracies) if results.accuracies else None


@FIGURES.add(
    "Histograms of reward-model scores",
    "Scores of the reward model before and after its training: of chosen and rejected responses of the held-out "
    "comparisons, and of generations for the test prompts. Rows share their axes, the line is the mean.",
    section="reward",
)
def reward_histograms(results: SuiteResults) -> Figure | None:
    scores, models = results.reward_model_scores
    return distributions.reward_histograms(scores, models) if scores else None


@FIGURES.add(
    "Box plots of reward-model scores",
    "The same scores: quartiles, whiskers to 1.5 interquartile ranges, diamonds at the means.",
    section="reward",
)
def reward_boxes(results: SuiteResults) -> Figure | None:
    scores, models = results.reward_model_scores
    return distributions.reward_boxes(scores, models) if scores else None


@FIGURES.add(
    "Loss, accuracy and learning rate of the reward model over its training",
    "The reward model's training. Thin: every step; thick: a centred mean over a twentieth of the steps, with its 95% "
    "interval; dashed: a model at chance (ln 2, a half). Trainings of several seeds follow one another.",
    section="reward-training",
)
def reward_training(results: SuiteResults) -> Figure | None:
    curve = results.reward_table("curves.csv")
    return curves.reward_training(curve) if curve is not None else None


@FIGURES.add(
    "Implicit rewards of better and worse responses over training",
    "Beta times the summed log-ratio to SFT of better and of worse responses: thin for each training batch, thick for "
    "a centred mean over a twentieth of the steps with its 95% interval, circles for the same held-out comparisons at "
    "every measurement.",
    section="reward-training",
)
def implicit_rewards(results: SuiteResults) -> Figure | None:
    objectives = dict(zip(results.runs["run"], map(json.loads, results.runs["objective"]), strict=True))
    runs = {results.display[run]: run for run in results.shown[1:] if run in results.curves}
    betas = {name: float(objectives[run]["beta"]) for name, run in runs.items() if "beta" in objectives[run]}
    return curves.implicit_rewards({name: results.curves[run] for name, run in runs.items()}, betas)


@FIGURES.add(
    "Observed against predicted preference of each reward",
    "A reward predicts that the response it prefers is the chosen one with probability sigmoid(difference of rewards); "
    "points of a calibrated one are on the dashed line. Each held-out pair counts in both orders, so the half below "
    "50% mirrors this one. Bars: 95% intervals over prompts. The expected calibration error weighs each bin's distance "
    "from the line by its pairs (below); by chance it is above 0 for a calibrated reward as well. A bin of fewer than "
    'five prompts has no mark. <span class="file">calibration.csv</span> has the bins.',
    section="calibration",
)
def calibration(results: SuiteResults) -> Figure | None:
    return reliability.calibration_figure(results.calibrations)


@FIGURES.add(
    "Accuracy of each reward by how much longer the chosen response is",
    "Accuracy on held-out pairs by the difference of their lengths, with 95% intervals over prompts. A reward that "
    "counts tokens is right on the right and wrong on the left.",
    section="reliability",
)
def length_gap(results: SuiteResults) -> Figure | None:
    pairs = results.held_out_pairs
    return reliability.length_gap_figure({name: accuracy_by_length(pairs[name], seed=name) for name in pairs})


@FIGURES.add(
    "Reward against response length of each policy",
    "Rewards of generations against their length, with Spearman's rank correlation and its 95% interval over prompts. "
    "Black: means of bins that hold about as many generations each.",
    section="reliability",
)
def length_correlation(results: SuiteResults) -> Figure:
    scores = {results.display[name]: results.tables[name] for name in results.shown}
    return reliability.reward_length_figure(scores, results.reward_labels)


@FIGURES.add(
    "Reward of each run minus SFT's at every prompt, sorted",
    "Mean reward of a run's generations minus that of SFT's at the same prompt, prompts sorted by it; blue above 0. "
    "Shares and means with 95% intervals over prompts.",
    section="gains",
)
def gains(results: SuiteResults) -> Figure | None:
    def difference(run: str, column: str) -> pd.Series:
        run_mean, sft = (results.tables[name].groupby("prompt_id")[column].mean() for name in (run, "sft"))
        return (run_mean - sft).dropna()  # a prompt that only one of the two answered is left out

    return reliability.differences_figure(
        {
            label: {results.display[run]: difference(run, column) for run in results.shown[1:]}
            for column, label in results.reward_labels.items()
        }
    )


@FIGURES.add(
    "Word clouds of chosen and rejected responses and the words that distinguish them",
    "Left: the most frequent words, English function words left out; larger is more often, and nothing else in a cloud "
    "is a measurement. Right: the words that distinguish chosen (above 0) from rejected responses, the log-odds ratio "
    "of their rates under an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008), picked and ordered by its "
    "z. Bars: 95% intervals over prompts of words that were picked on the same data.",
    section="texts",
)
def words(results: SuiteResults) -> Figure | None:
    return texts.words_figure(*results.training_texts) if results.training_texts else None


@FIGURES.add(
    "Map of chosen and rejected responses",
    "The first two principal components of the responses' TF-IDF vectors (words, logarithmic counts), a dot per "
    "response; the large marks are the means, with 95% intervals over prompts.",
    section="texts",
)
def text_map(results: SuiteResults) -> Figure | None:
    return texts.text_map_figure(*results.training_texts) if results.training_texts else None
