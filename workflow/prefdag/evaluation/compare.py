"""Two runs over the same prompts: paired differences, who wins, and what differs between their configs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.config.answer_sets import AnswerSet
from prefdag.errors import UserError
from prefdag.evaluation.bootstrap import Summary
from prefdag.evaluation.over_seeds import mean_over_seeds, paired_difference
from prefdag.evaluation.scores import Scores, match_rows, read_answers, read_scores
from prefdag.evaluation.trained import training_of
from prefdag.provenance.manifest import MANIFEST, read_manifest, read_training

SEED = re.compile(r"-seed(\d+)(?=@|$)")
SECTION = re.compile(r"^training\.(preference|online|sft|pretrain)\.")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its name, and a folder of scores for each seed."""

    name: str
    folders: tuple[Path, ...]


def find_side(name: str, results: Path) -> Side | None:
    """Find a set of answers by its name, or all seeds of a row by the row's name; None where a suite has neither."""
    scores = results / "score"
    if (scores / name / "scores.csv").is_file():
        return Side(name, (scores / name,))
    seeds = {int(match[1]): path for path in scores.glob("*") if (match := _seed_of(name, path))}
    return Side(name, tuple(seeds[seed] for seed in sorted(seeds))) if seeds else None


def _seed_of(name: str, folder: Path) -> re.Match[str] | None:
    match = SEED.search(folder.name)
    same = match is not None and SEED.sub("", folder.name, count=1) == name
    return match if same and (folder / "scores.csv").is_file() else None


def find_sides(names: tuple[str, str], results: Path | None) -> tuple[Side, Side]:
    """Find both sides, by name in one suite's results or by the path of a folder of scores.

    Raises:
        UserError: A name is unknown, or several suites have both.
    """
    places = [Path(name) if (Path(name) / "scores.csv").is_file() else None for name in names]
    folders = [results] if results else sorted(path.parent for path in Path("results").glob("*/score"))
    pairs = [
        [Side(name, (path,)) if path else find_side(name, folder) for path, name in zip(places, names)]
        for folder in folders
    ]
    if all(places):
        pairs = [[Side(name, (Path(name),)) for name in names]]
    both = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    if len(both) == 1:
        return both[0]
    searched = ", ".join(map(str, folders)) or "results/<suite>"
    if both:
        raise UserError(f"{' and '.join(names)} are in several suites ({searched}); choose one with --results")
    for index, name in enumerate(names):
        if not any(pair[index] for pair in pairs):
            known = sorted({path.parent.name for folder in folders for path in folder.glob("score/*/scores.csv")})
            raise UserError(
                f"{name}: no folder with a scores.csv, and no answers of that name in {searched}; "
                f"there are {', '.join(known) or 'none'}"
            )
    raise UserError(
        f"{' and '.join(names)} are not in one suite; name them by their folders, results/<suite>/score/<name>"
    )


@dataclass(frozen=True)
class Comparison:
    """What `prefdag compare` prints.

    Attributes:
        columns: Name -> mean of ours, mean of theirs, and their paired difference.
        win_rate: Of ours against theirs, by reward.
        configs: Dotted key -> the two values, where they differ.
    """

    ours: Side
    theirs: Side
    num_prompts: int
    columns: dict[str, tuple[float, float, Summary]]
    win_rate: Summary
    configs: dict[str, tuple[Any, Any]]

    @property
    def has_one_seed(self) -> bool:
        """Whether a side has one training, so that no interval holds the variance of its training."""
        return min(len(self.ours.folders), len(self.theirs.folders)) == 1


def compare(ours: Side, theirs: Side, *, bootstrap: int = 2000) -> Comparison:
    """Compare every column that both sides have. Raises `UserError` where they answer different prompts."""
    mine, others = ([read_scores(folder) for folder in one.folders] for one in (ours, theirs))
    pairs = [[(one, other, match_rows(one, other)) for other in others] for one in mine]
    _check_prompts(ours.folders[0], theirs.folders[0])
    prompts = np.unique([prompt for prompt, _ in mine[0].keys])
    names = [name for name in mine[0].columns if all(name in one.columns for one in (*mine, *others))]
    columns = {}
    for name in names:
        first, second = (np.stack([_by_prompt(one, name, prompts) for one in one_side]) for one_side in (mine, others))
        change = paired_difference(first, second, seed="compare", bootstrap=bootstrap)
        columns[name] = (float(first.mean()), float(second.mean()), change)
    wins = [[_wins(*pair) for pair in row] for row in pairs]
    rate = mean_over_seeds(np.array(wins), seed="compare", bootstrap=bootstrap, within=(0.0, 1.0))
    return Comparison(ours, theirs, len(prompts), columns, rate, _configs(ours, theirs))


def _check_prompts(ours: Path, theirs: Path) -> None:
    """Check the texts of prompts with equal numbers, which may differ across suites, where both answers are on disk."""
    generated = [folder.parent.parent / "generate" / folder.name for folder in (ours, theirs)]
    if not all((folder / "generations.jsonl").is_file() for folder in generated):
        return
    texts = [{prompt: text for (prompt, _), (text, _) in read_answers(folder).items()} for folder in generated]
    for prompt, text in texts[0].items():
        if texts[1].get(prompt, text) != text:
            raise UserError(
                f"{generated[0]}: prompt {prompt} reads differently in {generated[1]}; only runs with the same "
                "held-out prompts can be compared"
            )


def _by_prompt(scores: Scores, name: str, prompts: np.ndarray) -> np.ndarray:
    """Return the mean of a column over each prompt's samples [G]."""
    return _means(np.array([prompt for prompt, _ in scores.keys]), scores.column(name), prompts)


def _wins(ours: Scores, theirs: Scores, rows: list[tuple[int, int]]) -> np.ndarray:
    """Return the mean verdict of each prompt [G] by reward, a tie counting half."""
    mine, others = ours.column("reward"), theirs.column("reward")
    verdicts = [0.5 * (1 + np.sign(mine[row] - others[other])) for row, other in rows]
    numbers = np.array([ours.keys[row][0] for row, _ in rows])
    return _means(numbers, np.array(verdicts), np.unique(numbers))


def _means(numbers: np.ndarray, values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    where = np.searchsorted(prompts, numbers)
    return np.bincount(where, weights=values) / np.bincount(where)


def _configs(ours: Side, theirs: Side) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ between the manifests of the first seeds."""
    mine, others = (_flat(_manifest_configs(one.folders[0])) for one in (ours, theirs))
    mine["seeds"], others["seeds"] = (_seeds(one) for one in (ours, theirs))
    if len(ours.folders) + len(theirs.folders) > 2:
        for configs in (mine, others):
            configs.pop("training.preference.seed", None)
            configs.pop("training.online.seed", None)
    if mine.get("training.stage") != others.get("training.stage"):  # their sections share most keys
        mine, others = ({SECTION.sub("training.", key): value for key, value in one.items()} for one in (mine, others))
    keys = dict.fromkeys((*mine, *others))
    return {key: (mine.get(key), others.get(key)) for key in keys if mine.get(key) != others.get(key)}


def _seeds(one: Side) -> str | None:
    seeds = [SEED.search(folder.name) for folder in one.folders]
    return ", ".join(seed[1] for seed in seeds if seed) if len(seeds) > 1 else None


def _manifest_configs(folder: Path) -> dict[str, Any]:
    """Return the configs of a set of answers' training, generation and scoring, where their manifests exist."""
    results, policy = folder.parent.parent, AnswerSet.parse(folder.name).policy
    training = [results / stage for stage in ("pretrain", "fetch/model")]
    if policy != "base":
        training = [training_of(results, folder.name)[0]]
    places = {"training": training, **{stage: [results / stage / folder.name] for stage in ("generate", "score")}}
    configs = {}
    for step, folders in places.items():
        manifests = [each / MANIFEST for each in folders if (each / MANIFEST).is_file()]
        content = read_training(manifests[0]).content if manifests else {}
        configs[step] = content.get("config", {})
        if step == "training" and manifests:
            configs[step] = {"stage": content.get("stage"), **configs[step]}
    pairing = results / "pairing" / training[0].name / MANIFEST
    if pairing.is_file():  # the policy of a run with rounds
        configs["rounds"] = {
            "number": AnswerSet.parse(training[0].name).round,
            **read_manifest(pairing).content["config"],
        }
    return configs


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value if isinstance(value, str | int | float | None) else json.dumps(value)}
    return {
        inner: leaf
        for name, part in value.items()
        for inner, leaf in _flat(part, f"{key}.{name}" if key else str(name)).items()
    }
