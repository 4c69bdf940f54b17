"""Every set of answers that a suite scores, a row each: policies' own, variants, checkpoints, the chosen responses."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prefdag.answers import CHOSEN, POOL, policy_of, step_of, variant_of
from prefdag.tables import metric_columns, win_columns

DRAWN = ("temperature", "top_p", "max_new_tokens")


def answers_table(
    answers: Sequence[Mapping[str, Any]],
    runs: pd.DataFrame,
    summaries: Mapping[str, Mapping[str, Any]],
    wins: Mapping[str, Mapping[str, Any]],
    steps: Mapping[str, int],
) -> pd.DataFrame:
    """One row a scored set of answers, in the suite's order, policies' own first.

    answers: name, prompts (`test` or `ood`) and, unless nobody drew them, temperature, top_p, max_new_tokens. runs:
    `tables.runs_table`. summaries, wins: score/ and judge/summary.json by name. steps: optimizer steps of each run as
    a whole. Columns: answers, run (whose they are), variant, prompts, step (None for base and variants of it, 0 for
    SFT's own), how they were drawn, the columns of runs.csv, method, group, label, display of the run.
    """
    policies = runs.set_index("run")[["method", "group", "label", "display"]].to_dict("index")
    nobody = {"method": CHOSEN, "group": CHOSEN, "label": "", "display": "chosen responses"}
    rows = []
    for told in answers:
        name = told["name"]
        if name not in summaries:
            continue
        run = policy_of(name)
        held = "sft" if run == "sft" and variant_of(name) != POOL else name
        rows.append(
            {
                "answers": name,
                "run": run,
                "variant": variant_of(name),
                "prompts": told.get("prompts", "test"),
                "step": step_of(name) or (None if variant_of(name) else {"sft": 0, **steps}.get(run)),
                **{key: told.get(key) for key in DRAWN},
                **metric_columns(summaries[name]),
                **win_columns(wins.get(name), held),
                **policies.get(run, nobody),
            }
        )
    return pd.DataFrame(rows).astype({"step": "Int64", **dict.fromkeys(DRAWN, "Float64")})


def checkpoints(table: pd.DataFrame) -> pd.DataFrame:
    """The answers of weights kept on the way."""
    return table[table["variant"].map(lambda name: step_of(f"@{name}") is not None)]


def elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """A row a policy and a setting of sampling that answered prompts of another input distribution and was judged.

    Columns: display, temperature, top_p, and of `ood` and of `test` (the suite's own prompts, nan where nothing was
    drawn alike there) `<prompts>_mean`, `_low` and `_high` of the win rate.
    """
    keys = ["run", "display", *DRAWN]
    held = ["win_rate", "win_low", "win_high"]
    judged = table[table["win_low"].notna() & (table["variant"] != POOL)]
    judged = judged[judged["answers"].map(step_of).isna()]
    sides = {
        name: judged[judged["prompts"] == name]
        .drop_duplicates(keys)[keys + held]
        .set_axis(keys + [f"{name}_{end}" for end in ("mean", "low", "high")], axis=1)
        for name in ("ood", "test")
    }
    return sides["ood"].merge(sides["test"], on=keys, how="left")


def alike(table: pd.DataFrame) -> pd.DataFrame:
    """Policies' own answers and the variants that differ from them in nothing but temperature, seed or number."""
    own = table[table["variant"] == ""].set_index("run")
    kept = []
    for row in table.to_dict("records"):
        drawn = row["run"] in own.index and row["variant"] != POOL and step_of(row["answers"]) is None
        kept.append(
            drawn and row["prompts"] == "test" and all(row[key] == own.at[row["run"], key] for key in DRAWN[1:])
        )
    return table[kept]
