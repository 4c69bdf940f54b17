"""The report's tables of policies and of answers, and which runs are compared."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from prefdag.config.answer_sets import CHOSEN, POOL, AnswerSet
from prefdag.config.objectives import OBJECTIVES
from prefdag.config.online.methods import METHODS
from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.errors import UserError
from prefdag.evaluation.calibration import Calibration

BEFORE_ALIGNMENT = ("base", "sft")
FIRST_COLUMNS = (
    ["run", "method", "seed", "reward", "reward_low", "reward_high", "kl", "kl_se", "length"]
    + ["win_rate", "win_low", "win_high", "objective", "k1", "k3", "distinct1", "distinct2", "trained", "untrained"]
    + ["num_prompts", "num_generations"]
)
CSV_ONLY = ("ended", "repetition", *GROUND_TRUTHS)  # in scores.csv and summary.json, not in the report's tables
METRICS = ("reward", "kl", "length", "k1", "k3", "distinct1", "distinct2", "trained", "untrained")
BEFORE_TITLES = {"base": "base", "sft": "SFT"}
SYMBOLS = {"alpha": "α", "beta": "β", "epsilon": "ε", "gamma": "γ", "lambda": "λ", "tau": "τ", "label_smoothing": "ε"}


def title(method: str, form: str = "") -> str:
    """Return a method's name as papers print it; `online` and `own-pairs` before it are those of `Run`.

    form: the choices that make it another loss than its namesakes.
    """
    if form:
        return f"{title(method)} {form}"
    source, _, loss = method.partition(" ")
    if source == "online" and loss:
        return f"Online {title(loss)}"
    if source == "own-pairs" and loss:
        return f"{title(loss)} (own pairs)"
    entry = OBJECTIVES.get(method) or METHODS.get(method)
    if entry is not None and entry.title:
        return entry.title
    # A user's loss is called by its function.
    return BEFORE_TITLES.get(method, method.rpartition(":")[2].replace("_", " "))


def runs_table(
    runs: Sequence[Mapping[str, Any]],
    summaries: Mapping[str, Mapping[str, Any]],
    wins: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, tuple[int, int]],
) -> pd.DataFrame:
    """Tabulate the policies, one per row: base and SFT first, then the suite's runs in their order.

    Args:
        runs: name, method, seed and objective of each run.
        summaries, wins: score/summary.json and judge/summary.json by policy.
        sizes: number of prompts and of generations by policy.
    """
    before: list[dict[str, Any]] = [
        {"name": name, "method": name, "seed": None, "objective": {}} for name in BEFORE_ALIGNMENT
    ]
    rows = [row for row in (*before, *runs) if row["name"] in summaries]
    labels = _labels(rows)
    table = [
        {
            "run": row["name"],
            "method": row["method"],
            "seed": row["seed"],
            **metric_columns(summaries[row["name"]]),
            **win_columns(wins.get(row["name"]), row["name"]),
            "objective": json.dumps(_parameters(row), sort_keys=True),
            "num_prompts": sizes[row["name"]][0],
            "num_generations": sizes[row["name"]][1],
            "group": group(row),
            "label": labels[group(row)],
        }
        for row in rows
    ]
    frame = pd.DataFrame(table).astype({"seed": "Int64"})
    frame["display"] = _displays(frame)
    forms = _forms(rows)
    frame["form"] = [forms[group(row)] for row in rows]
    return frame


def metric_columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return reward, reward_low, reward_high, reward_se, kl, ... of one policy; None for what the suite lacks.

    summary: summary.json of the stage `score`. Implicit rewards and metrics that `METRICS` does not name come last.
    """
    columns: dict[str, float | None] = {}
    further = [name for name in summary if name not in (*METRICS, *CSV_ONLY)]
    for metric in (*METRICS, *further):
        entry = summary.get(metric) or {}
        columns[metric] = entry.get("mean")
        columns |= {f"{metric}_{key}": entry.get(key) for key in ("low", "high", "se")}
    return columns


def win_columns(wins: Mapping[str, Any] | None, name: str) -> dict[str, float | None]:
    """Return win_rate, win_low, win_high of a set of answers; SFT's against itself is a half."""
    if wins is None:
        return {"win_rate": 0.5 if name == "sft" else None, "win_low": None, "win_high": None}
    return {"win_rate": wins["win_rate"], "win_low": wins["low"], "win_high": wins["high"]}


def _parameters(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["objective"].items() if key != "method"}


def group(row: Mapping[str, Any]) -> str:
    """Return the suite's row that a run belongs to: its name without the seed."""
    return str(row["name"]).removesuffix(f"-seed{row['seed']}")


def _labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Label each group by the parameters that vary within its method, or by its name if none do."""
    labels: dict[str, str] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        groups = {group(row): _parameters(row) for row in rows if row["method"] == method}
        names = dict.fromkeys(name for parameters in groups.values() for name in parameters)
        varying = [name for name in names if len({str(parameters.get(name)) for parameters in groups.values()}) > 1]
        varied = {key: ", ".join(_value(name, p[name]) for name in varying if name in p) for key, p in groups.items()}
        alone = len(groups) == 1 or len(set(varied.values())) == len(groups)
        labels |= varied if alone else {key: key for key in groups}
    return labels


def _forms(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return for each group the choices, not numbers, that vary within its method: another choice is another loss.

    A row that has no such option, or the only one, has the empty form.
    """
    forms: dict[str, str] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        groups = {group(row): _parameters(row) for row in rows if row["method"] == method}
        values = [(name, value) for parameters in groups.values() for name, value in parameters.items()]
        choices = dict.fromkeys(name for name, value in values if isinstance(value, str | bool))
        varying = [name for name in choices if len({str(one.get(name)) for one in groups.values()}) > 1]
        forms |= {key: ", ".join(str(one[name]) for name in varying if name in one) for key, one in groups.items()}
    return forms


def _value(name: str, value: Any) -> str:
    return f"{SYMBOLS.get(name, name)}={value:g}" if isinstance(value, float) else f"{SYMBOLS.get(name, name)}={value}"


def _displays(frame: pd.DataFrame) -> list[str]:
    """Name the policies on figures, such as DPO β=0.1, with the seed if several ran."""
    seeds = frame["group"].map(frame["group"].value_counts())
    return [
        " ".join(filter(None, [title(row.method), row.label, f"seed {row.seed}" if several > 1 else ""]))
        for row, several in zip(frame.itertuples(), seeds, strict=True)
    ]


def runs_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of runs.csv: the most wanted first, then every interval."""
    rest = [column for column in frame.columns if column not in (*FIRST_COLUMNS, "group", "label", "display", "form")]
    return frame[[*FIRST_COLUMNS, *rest]]


def calibration_csv(calibrations: Mapping[str, Calibration]) -> pd.DataFrame:
    """Return calibration.csv: a row per bin of each reward."""
    return pd.concat([one.bins.assign(reward=name) for name, one in calibrations.items()], ignore_index=True)


def compared(frame: pd.DataFrame, wanted: Sequence[str] | None) -> list[str]:
    """Select the runs to show next to SFT: `wanted`, or DPO's best setting and those of the two best other methods.

    Raises UserError for a name that is no run of the suite.
    """
    runs = frame[~frame["run"].isin(BEFORE_ALIGNMENT)]
    for name in wanted or ():
        if name not in set(runs["run"]):
            raise UserError(f"report.compare: {name} is no run of this suite; it has {', '.join(runs['run'])}")
    if wanted is not None:
        return list(wanted)
    rewards = runs.groupby("group", sort=False)["reward"].mean()  # of a setting's seeds
    first = runs.drop_duplicates("group").assign(setting=lambda rows: rows["group"].map(rewards))
    best = first.sort_values("setting", ascending=False, kind="stable").drop_duplicates("method")
    best = best.sort_values("method", key=lambda method: method != "dpo", kind="stable")
    return best["run"].tolist()[:3]


SAMPLING = ("temperature", "top_p", "max_new_tokens")


def answers_table(
    answers: Sequence[Mapping[str, Any]],
    runs: pd.DataFrame,
    summaries: Mapping[str, Mapping[str, Any]],
    wins: Mapping[str, Mapping[str, Any]],
    steps: Mapping[str, int],
) -> pd.DataFrame:
    """Tabulate the scored sets of answers, one per row, in the suite's order: the policies' own answers come first.

    Args:
        answers: `name`, `prompts` (`test` or `ood`) and, if a policy sampled them, `SAMPLING` of each set.
        runs: `runs_table`.
        summaries, wins: score/summary.json and judge/summary.json by name.
        steps: optimizer steps of each run's whole training, and up to the end of each of its rounds.

    Returns:
        Columns answers, run, variant, prompts, step (0 for SFT, None for base and for variants), `SAMPLING`, the
        metrics of runs.csv, and method, group, label, display of the run.
    """
    policies = runs.set_index("run")[["method", "group", "label", "display"]].to_dict("index")
    chosen = {"method": CHOSEN, "group": CHOSEN, "label": "", "display": "chosen responses"}
    rows = []
    for entry in answers:
        name = entry["name"]
        if name not in summaries:
            continue
        one = AnswerSet.parse(name)
        last_step = None if one.variant else {"sft": 0, **steps}.get(name)
        rows.append(
            {
                "answers": name,
                "run": one.policy,
                "variant": one.suffix,
                "prompts": entry.get("prompts", "test"),
                "step": one.step or last_step,
                **{key: entry.get(key) for key in SAMPLING},
                **metric_columns(summaries[name]),
                **win_columns(wins.get(name), name if one.is_pool else one.policy),
                **policies.get(one.policy, chosen),
            }
        )
    return pd.DataFrame(rows).astype({"step": "Int64", **dict.fromkeys(SAMPLING, "Float64")})


def checkpoints(table: pd.DataFrame) -> pd.DataFrame:
    """Return the answers of checkpoints, the ends of rounds included.

    Column `is_later` tells those of a run that `select` stopped at an earlier step.
    """
    ends = table[table["answers"] == table["run"]].set_index("run")["step"]
    rows = table[_is_checkpoint(table)]
    return rows.assign(is_later=(rows["step"] > rows["run"].map(ends)).fillna(False).astype(bool))


def _is_checkpoint(table: pd.DataFrame) -> pd.Series:
    return table["answers"].map(lambda name: AnswerSet.parse(name).is_checkpoint).astype(bool)


def ood_win_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per policy and sampling setting that answered prompts of another distribution and was judged.

    Columns: display, temperature, top_p, and `ood_mean`, `_low` and `_high` of the win rate there, `test_mean`, `_low`
    and `_high` of the same setting on the suite's test prompts (nan if it did not answer them).
    """
    keys = ["run", "display", *SAMPLING]
    win_rate = ["win_rate", "win_low", "win_high"]
    judged = table[table["win_low"].notna() & (table["variant"] != POOL)]
    judged = judged[~_is_checkpoint(judged)]
    sides = {
        name: judged[judged["prompts"] == name]
        .drop_duplicates(keys)[keys + win_rate]
        .set_axis(keys + [f"{name}_{end}" for end in ("mean", "low", "high")], axis=1)
        for name in ("ood", "test")
    }
    return sides["ood"].merge(sides["test"], on=keys, how="left")


def temperature_variants(table: pd.DataFrame) -> pd.DataFrame:
    """Return the policies' answers, and those of variants that differ in temperature, seed or number at most."""
    defaults = table[table["variant"] == ""].set_index("run")

    def comparable(row: Mapping[Hashable, Any]) -> bool:
        one = AnswerSet.parse(row["answers"])
        if one.policy not in defaults.index or one.is_pool or one.is_checkpoint or row["prompts"] != "test":
            return False
        return all(row[key] == defaults.at[one.policy, key] for key in SAMPLING[1:])

    return table[[comparable(row) for row in table.to_dict("records")]]
