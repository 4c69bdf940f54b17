"""The page's tables of runs, seeds, published results, the league and rewards, and its samples."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefdag.config.sections.report import Expected
from prefdag.data.dropped import MANY, lost_rows, warnings
from prefdag.evaluation.over_seeds import ONE_SEED
from prefdag.reporting.candidates import candidates_rows, protocol
from prefdag.reporting.load import SuiteResults, evenly_spaced
from prefdag.reporting.lost import audit_of, leaked, silent_share
from prefdag.reporting.rows import (
    answers_row,
    best_of_n_rows,
    configs_of,
    evaluation_rows,
    league_rows,
    ood_row,
    percent,
    rounds_of,
    run_row,
    stages_of,
)
from prefdag.reporting.sections.judges import agreements, rates
from prefdag.reporting.seeds import published_rows, seeds_table
from prefdag.reporting.tables import METRICS, ood_win_rates

SILENT = 0.05  # share of answers without text that is warned of


def overview(results: SuiteResults, expected: Sequence[Expected]) -> dict[str, Any]:
    """Return what the page shows of every suite. expected: published results to compare with."""
    runs = results.runs
    measured = [str(name) for name in runs.columns if f"{name}_se" in runs.columns]
    further = [name for name in measured if name not in METRICS and not name.startswith("implicit_")]
    further += ["attainable_share"] if results.attainable is not None and runs["attainable_share"].notna().any() else []
    return {
        "rows": [run_row(row, further) for row in runs.to_dict("records")],
        "further_metrics": further,
        "more": {"attainable_share": "share of the attainable gain"},
        "configs": configs_of(results.inputs.preferences),
        "rounds": rounds_of(results.inputs.preferences),
        "trained_by": stages_of(results.inputs.preferences),
        "seeds": [{**row, "win_rate": percent(row["win_rate"])} for row in seeds_table(runs, results.means)],
        "published": published_rows(expected, runs, results.means, results.accuracies),
        "curves": bool(results.curves or results.online),
        "league": league_rows(results.league, results.settings.matched_kl),
        "matched_kl": results.settings.matched_kl,
        "one_seed": ONE_SEED,
        "evaluation": evaluation_rows(results.accuracies),
        "reward_model": results.inputs.reward is not None,
        "num_prompts": _range(runs["num_prompts"]),
        "num_generations": _range(runs["num_generations"]),
        "calibrations": results.calibrations,
        "pairs": sample_pairs(results),
        "samples": sample_generations(results),
        **lost_content(results),
    }


def answers_content(results: SuiteResults) -> dict[str, Any]:
    """Return what the page shows of variants, checkpoints, Best-of-N and judges."""
    return {
        "judged_by": results.judging.get("judge", "reward"),
        "held_against": results.judging.get("held_against", "sft"),
        "answers": [answers_row(row) for row in results.further_answers.to_dict("records")],
        "other_prompts": [ood_row(row) for row in ood_win_rates(results.answers).to_dict("records")],
        "best_of_n": best_of_n_rows(results.pool),
        "candidates": candidates_rows(results.candidates),
        "protocol": protocol(results.inputs.choices),
        "attainable": _last_trusted(results.attainable),
        "rates": rates(results.wins, results.display),
        "agreements": agreements([path for name, path in results.verdicts.items() if name in results.tables]),
    }


def _last_trusted(curve: pd.DataFrame | None) -> dict[str, Any] | None:
    """Return the last trusted row of attainable.csv; None without a pool, or where it is too small for a curve."""
    trusted = [] if curve is None else curve[curve["trusted"]].to_dict("records")
    return {str(key): value for key, value in trusted[-1].items()} if len(trusted) > 1 else None


def lost_content(results: SuiteResults) -> dict[str, Any]:
    """Return what the top of the page says of lost rows and answers, and whether there is an audit to link."""
    splits = audit_of(results.inputs.comparisons)
    rows = {split: lost_rows(audit) for split, audit in splits.items()}
    cut = [
        f"{row['display']} {1 - row['ended']:.0%}"
        for row in results.runs.to_dict("records")
        if not pd.isna(row["ended"]) and 1 - row["ended"] > MANY
    ]
    shares = [(row["display"], silent_share(results.tables[row["run"]])) for row in results.runs.to_dict("records")]
    return {
        "rows_read": sum(read for _, read in rows.values()),
        "rows_dropped": sum(lost for lost, _ in rows.values()),
        "rows_warnings": warnings(splits),
        "leaked": leaked(results.inputs.comparisons),
        "rows_labels": splits.get("train", {}).get("labels"),
        "cut_answers": ", ".join(cut),
        "silent_answers": ", ".join(f"{name} {share:.0%}" for name, share in shares if share > SILENT),
    }


def _range(counts: pd.Series) -> str:
    return str(counts.min()) if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"


def sample_generations(results: SuiteResults) -> list[dict[str, Any]]:
    """Return the first generation of each shown policy for evenly spaced test prompts, with its reward."""
    folders = {path.parent.name: path.parent for path in results.inputs.generations}
    prompts = np.unique(results.tables["sft"]["prompt_id"])
    selected = prompts[evenly_spaced(len(prompts), results.settings.samples)]
    samples: dict[int, dict[str, Any]] = {
        prompt: {"prompt_id": int(prompt), "prompt": "", "answers": []} for prompt in selected.tolist()
    }
    for policy in ("base", *results.shown):
        if policy not in folders:
            continue
        rewards = results.tables[policy].set_index(["prompt_id", "sample"])["reward"]
        with (folders[policy] / "generations.jsonl").open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                if row["sample"] == 0 and row["prompt_id"] in samples:
                    sample = samples[row["prompt_id"]]
                    sample["prompt"] = row["prompt"]
                    reward = float(rewards[row["prompt_id"], 0])
                    answer = {"policy": results.display[policy], "response": row["response"], "ended": row["ended"]}
                    sample["answers"].append({**answer, "reward": reward})
    return list(samples.values())


def sample_pairs(results: SuiteResults) -> list[dict[str, Any]]:
    """Return evenly spaced held-out comparisons: best and last response, scored before and after reward training."""
    table = results.reward_table("held_out.csv")
    if results.tokenizer is None or table is None:
        return []
    store = results.store("test")
    assert len(table) == len(store), "held_out.csv has a line for every held-out comparison"
    columns = {when: table.filter(regex=f"^{when}_").to_numpy() for when in ("before", "after")}
    scores = {when: values for when, values in columns.items() if values.size}
    rows, pairs = evenly_spaced(len(store), results.settings.samples), []
    for row, (prompt, responses) in zip(rows, results.decode("test", rows), strict=True):
        sides = [
            {"who": who, "text": responses[rank], **{when: float(scores[when][row, rank]) for when in scores}}
            for who, rank in (("chosen", 0), ("rejected", -1))
        ]
        pairs.append({"row": int(store.rows[row]), "prompt": prompt, "sides": sides})
    return pairs
