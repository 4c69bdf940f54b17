"""A suite: one experiment in one YAML file, validated before any job starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from prefdag.config import loading
from prefdag.config.classifier import Classifier
from prefdag.config.data import Data
from prefdag.config.demonstrations import SupervisedTraining, sft_located
from prefdag.config.exact import Exact, Sweep
from prefdag.config.generate import Generate
from prefdag.config.hub_lock import lock_path
from prefdag.config.model import Model
from prefdag.config.online.settings import Online
from prefdag.config.prepare import Prepare, with_relative_paths
from prefdag.config.rounds import IMPLICIT, JUDGE
from prefdag.config.row_needs import check_sections, lacking
from prefdag.config.runs import Run, checked_name, expanded, grid_of, rows_located, rows_of, sweep_of
from prefdag.config.sections.evaluate_reward import RewardSets
from prefdag.config.sections.judge import Judge
from prefdag.config.sections.judge import with_relative_paths as judges_located
from prefdag.config.sections.pairs import Pairs
from prefdag.config.sections.preference import Preference
from prefdag.config.sections.pretrain import Pretrain
from prefdag.config.sections.reference import Reference
from prefdag.config.sections.report import Expected, Report
from prefdag.config.sections.reward import Reward
from prefdag.config.sections.run_names import check_names, named_once
from prefdag.config.sections.score import Score
from prefdag.config.sections.score import with_relative_paths as score_located
from prefdag.config.sections.select import Select
from prefdag.config.sections.size import Size
from prefdag.config.selection.candidates import with_candidates
from prefdag.config.user_paths import relative_path
from prefdag.errors import Mistakes, UserError
from prefdag.schema import Count, Seed


class Suite(loading.WholeSuite):
    """A suite as resolved: defaults filled in, the grid and the seeds expanded."""

    name: str
    seed: Seed = 0
    threads: Count = 1
    model: Model
    data: Data
    classifier: Classifier | None = None
    prepare: Prepare = Prepare()
    pretrain: Pretrain | None = None
    sft: SupervisedTraining = SupervisedTraining()
    pairs: Pairs | None = None
    reward: Reward | None = None
    reference: Reference = Reference()
    preference: Preference = Preference()
    online: Online | None = None
    generate: Generate = Generate()
    score: Score = Score()
    judge: Judge = Judge()
    report: Report = Report()
    expected: tuple[Expected, ...] = Field((), description="published results, shown next to measured ones")
    size: Size | None = None
    lock: str = Field(
        "", description="path of the lock file of Hub commits; default: <name>.lock.json in the suite's folder"
    )
    evaluate_reward: RewardSets = Field({}, exclude_if=lambda value: not value)
    select: Select | None = Field(None, exclude_if=lambda value: value is None)
    runs: tuple[Run, ...]

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return checked_name(name)

    def disagreements(self, *, rows_are_whole: bool) -> list[str]:
        """As of every suite. Runs that differ in their seed alone share a sentence."""
        mistakes = Mistakes()
        check_sections(self, mistakes)
        if not rows_are_whole:
            return mistakes.sentences
        of_rows = dict[tuple[str, str], str]()
        for run in self.runs:
            for sentence in mistakes.attempt(self._lacking, run) or ():
                of_rows.setdefault((run.without_seed, sentence), f"runs.{run.name}.{sentence}")
        if not of_rows:  # it asks what each row is rewarded by
            mistakes.attempt(self._check_classifier)
        for check in (self._check_compared, self._check_policies, self._check_all_implicit):
            mistakes.attempt(check)
        return [*of_rows.values(), *mistakes.sentences]

    def _check_compared(self) -> None:
        check_names(self.report.compare or (), [run.name for run in self.runs], "report.compare")

    def _check_policies(self) -> None:
        self.generate.check_policies(("base", "sft", *(run.name for run in self.runs)))

    def _check_all_implicit(self) -> None:
        mistakes, key = Mistakes(), "score.implicit"
        mistakes.attempt(check_names, self.score.implicit, [run.name for run in self.runs], key)
        for name in self.score.implicit:
            mistakes.attempt(self._check_implicit, name, key)
        mistakes.check()

    def _lacking(self, run: Run) -> list[str]:
        """Return what a run needs that the suite does not have, without the run's place."""
        mistakes = Mistakes()
        mistakes.attempt(self._check_rounds, run)
        if run.online is not None:
            online = run.online.resolved(self.score.reward)
            from_reward = getattr(run.objective, "value_from", "") == "reward"
            for key, is_wanted in {"reward": online.reward == "trained", "value_from": from_reward}.items():
                if is_wanted and self.reward is None:
                    mistakes.add(f"{key}: the section `reward` must be there to train the reward model")
            if name := online.implicit_run:
                mistakes.attempt(self._check_implicit, name, "reward")
            if online.judge:
                mistakes.attempt(self.judge.model_named, online.judge, "reward")
        mistakes.add(lacking(run, self.adapters, self.reward.origin if self.reward else None) or "")
        return mistakes.sentences

    def _check_classifier(self) -> None:
        """Check that a classifier that is read exists, has labelled rows if trained, and that neither is unused."""
        rewards = {"score.reward": self.score.reward, "pairs.reward": self.pairs and self.pairs.reward}
        rewards |= {f"runs.{run.name}.reward": run.online.reward for run in self.runs if run.online}
        rewards |= {f"runs.{run.name}.pairs.reward": self.reward_of_rounds(run.name) for run in self.runs if run.rounds}
        rewards |= {f"runs.{run.name}.discriminator.gold": self.gold_of_rounds(run.name) for run in self.runs}
        asking = [key for key, reward in rewards.items() if reward == "classifier"]
        labelled = any(source.labelled for source in (*self.data.sources, self.data))
        if asking and self.classifier is None:
            raise UserError(f"{asking[0]}: `classifier`, so the section `classifier` must be there")
        if self.classifier and not asking:
            raise UserError("classifier: nothing reads it; say `reward: classifier` in score or pairs, or remove it")
        if self.classifier and self.classifier.is_trained and not labelled:
            raise UserError("data.labelled: missing; the classifier is trained on these rows")
        if labelled and not (self.classifier and self.classifier.is_trained):
            raise UserError("data.labelled: nothing reads it; a `classifier` with source `trained` would")

    def reward_of_rounds(self, name: str) -> str:
        """Return what scores the samples of a run's rounds, as `Rounds.reward` names it."""
        rounds = self.run(name).rounds
        return (
            rounds.reward(self.score.reward, self.pairs.reward if self.pairs else None) if rounds else self.score.reward
        )

    def gold_of_rounds(self, name: str) -> str | None:
        """Return what labels the pairs that a run's discriminator is trained on, as `Rounds.gold` names it."""
        rounds = self.run(name).rounds
        return rounds.gold(self.score.reward, self.pairs.reward if self.pairs else None) if rounds else None

    def _check_rounds(self, run: Run) -> None:
        """Check that a run that draws its own pairs has a reward that scores them."""
        if run.rounds is None:
            return
        if run.dataset != "comparisons":
            raise UserError("dataset: a run with `pairs` draws its own; leave `dataset` out")
        gold = self.gold_of_rounds(run.name)
        if (reward := self.reward_of_rounds(run.name)) == "trained" and self.reward is None:
            trained = "discriminator: its settings are those of" if gold else "pairs.reward: `trained`, so"
            raise UserError(f"{trained} the section `reward`{', which' if gold else ''} must be there to train it")
        if gold and self.reward and self.reward.source:
            raise UserError("discriminator: `reward.source` names a model that nothing trains; remove one of the two")
        for key, scorer in {"pairs.reward": reward, "discriminator.gold": gold or ""}.items():
            if scorer.startswith(JUDGE):
                self.judge.model_named(scorer.removeprefix(JUDGE), key)
        if gold and gold.startswith(JUDGE) and self.reward and self.reward.margin == "scores":
            raise UserError("discriminator.gold: a judge gives no scores, which `reward.margin: scores` reads")
        if other := reward.removeprefix(IMPLICIT) if reward.startswith(IMPLICIT) else None:
            self._check_implicit(other, "pairs.reward")
            if self.run(other).rounds:
                raise UserError(f"pairs.reward: {other} has rounds of its own; name a run without `pairs`")

    @property
    def adapters(self) -> list[str]:
        """The adapters of the suite's comparisons; none if they are sampled."""
        if self.pairs is not None:
            return []
        return [source.adapter or self.prepare.adapter for source in self.data.sources] or [self.prepare.adapter]

    def _check_implicit(self, name: str, key: str) -> None:
        """Check that a run has an implicit reward: beta times its log-ratio to SFT. key: what names the run."""
        check_names([name], [run.name for run in self.runs], key)
        rounds = self.run(name).rounds
        if rounds and rounds.rounds > 1 and rounds.pairs.reference != "sft":
            raise UserError(f"{key}: the loss of {name} has another reference in each round; state `reference: sft`")
        objective = self.run(name).objective
        beta = objective.parameters().get("beta")
        if self.run(name).candidates:
            raise UserError(f"{key}: `select` chooses the settings of {name}; name a row that it does not select")
        if "reference" not in objective.reads or "state" in objective.reads or not isinstance(beta, float):
            raise UserError(
                f"{key}: {name} ({objective.method}) has no implicit reward; its loss must read "
                "the reference and have one beta"
            )

    @property
    def trained(self) -> list[Run]:
        """The runs that are trained: of a row that `select` chooses, its candidates."""
        return [one for run in self.runs for one in run.candidates or (run,)]

    def run(self, name: str) -> Run:
        """Return a run or a candidate by its name, or by that of one of its rounds such as `dpo@round2`."""
        return next(run for run in (*self.runs, *self.trained) if run.name == name.partition("@")[0])


class ExactSuite(loading.WholeSuite):
    """A suite with a section `exact`: losses minimised in a world that can be enumerated."""

    name: str
    seed: Seed = 0
    threads: Count = 1
    exact: Exact
    runs: tuple[Sweep, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return checked_name(name)

    def run(self, name: str) -> Sweep:
        return next(run for run in self.runs if run.name == name)


def read_suite(paths: list[str]) -> Suite | ExactSuite:
    """Read one suite file and merge further files over it key by key, as Snakemake's --configfile does."""
    values, stated = dict[str, Any](), dict[str, str]()
    for path in paths:
        read = loading.read_yaml(Path(path))
        values, stated = loading.merge(values, read), {**stated, **dict.fromkeys(read, path)}
    return resolve(values, paths[-1], stated)


def read_ordinary_suite(paths: list[str]) -> Suite:
    """Read a suite that has a model and data. Raises `UserError` for a suite with the section `exact`."""
    suite = read_suite(paths)
    if isinstance(suite, ExactSuite):
        raise UserError(f"{paths[-1]}: a suite with the section `exact` has no model and no data; name another")
    return suite


def resolve(values: Mapping[str, Any], where: str, stated: Mapping[str, str] | None = None) -> Suite | ExactSuite:
    """Validate a suite and expand its rows.

    Args:
        values: the suite's YAML.
        where: the file that error messages name.
        stated: file of each section, if several were merged; paths in a section are relative to its file.

    Raises:
        UserError: one sentence for each mistake, a line each.
    """
    values, stated = dict(values), {**dict.fromkeys(values, where), **(stated or {})}
    values, stated = loading.with_extended(values, stated)
    for key, value in values.items():
        loading.check_no_home({key: value}, stated[key])
    mistakes = Mistakes()
    kind = ExactSuite if "exact" in values else Suite
    if kind is Suite:
        values = loading.with_defaults(values)
    shared = loading.share_defaults(values, kind)
    rows = mistakes.attempt(_rows, values, "runs", stated, where) or []
    grid = mistakes.attempt(_rows, values, "grid", stated, where) or []
    if kind is ExactSuite:
        sweeps = [
            *(mistakes.attempt(sweep_of, row, [row], where) for row in rows),
            *(mistakes.attempt(sweep_of, entry, grid_of([entry]), where) for entry in grid),
        ]
        mistakes.attempt(named_once, [sweep.name for sweep in filter(None, sweeps)], where)
        return loading.checked_suite(ExactSuite, {**values, "runs": [*filter(None, sweeps)]}, where, mistakes)
    values["prepare"] = with_relative_paths(values["prepare"], stated.get("prepare", where))
    values["sft"] = sft_located(values["sft"], stated.get("sft", where), shared)
    values["score"] = score_located(values["score"], stated.get("score", where))
    if "judge" in values:
        values["judge"] = judges_located(values["judge"], stated["judge"])
    online: dict[str, Any] = values.get("online") or {**shared}
    if "reward" in online:
        values["online"] = online = {**online, "reward": relative_path(online["reward"], stated["online"])}
    lock = lock_path(stated.get("lock", where), str(values.pop("lock", None) or f"{values.get('name')}.lock.json"))
    preference = values["preference"]
    if mistakes.attempt(Preference.parse, preference, where, "preference") is None:
        preference = loading.with_defaults({})["preference"]  # so that mistakes of the rows are named as well
    rows = [*rows, *grid_of(grid)]
    runs = expanded(rows, preference, online, where, mistakes)
    if values.get("select") is not None:
        select = mistakes.attempt(Select.parse, values["select"], where, "select")
        runs = with_candidates(select, rows, runs, (preference, online), where, mistakes) if select else runs
    return loading.checked_suite(Suite, {**values, "lock": lock, "runs": runs}, where, mistakes)


def _rows(values: dict[str, Any], key: str, stated: Mapping[str, str], where: str) -> list[dict[str, Any]]:
    """Take the rows of `runs` or `grid` out of a suite."""
    return rows_located(rows_of(values.pop(key, None), key, where), stated.get(key, where))
