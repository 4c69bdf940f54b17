"""The jobs of a suite: the config that each may read, and the folders of the stages that it depends on.

Imports no torch and is fast: Snakemake parses the rules in every cluster job.
"""

import json
from pathlib import Path
from typing import Any

from prefdag.config import round_jobs
from prefdag.config.adapter_folder import base_of_model
from prefdag.config.adapters import adapter_files
from prefdag.config.answer_sets import CHOSEN, POOL, VALIDATION, AnswerSet
from prefdag.config.exact import LEFT_OUT
from prefdag.config.fetched_repositories import repositories_of
from prefdag.config.model import Origin
from prefdag.config.online.settings import Online
from prefdag.config.reference_jobs import cache_config
from prefdag.config.reward_models import reward_set_jobs
from prefdag.config.round_jobs import generation_of_samples, round_of, scoring_of, start_of_round
from prefdag.config.rounds import round_name
from prefdag.config.sections.best_of_n import BestOfN
from prefdag.config.sections.report import Report
from prefdag.config.selection import select_jobs
from prefdag.config.suite import ExactSuite, Suite
from prefdag.schema import Section

BEFORE_ALIGNMENT = ("base", "sft")


def config_of(suite: Suite | ExactSuite, stage: str, name: str | None = None) -> str:
    """Return the keys that one job may read as canonical JSON, which Snakemake compares as one value."""
    if isinstance(suite, ExactSuite):
        return _canonical(_EXACT_PARTS[stage](suite, name))
    if stage == "preference":
        run = suite.run(str(name))
        soft = {"labels": "soft"} if run.rounds and run.rounds.pairs.labels == "soft" else {}
        return _canonical({"preference": run.preference, "objective": run.objective, **soft})
    if stage in ("policy", "online"):
        return _canonical({"online": online_of(suite, str(name)), **round_jobs.method_of_online(suite, str(name))})
    return _canonical(_PARTS[stage](suite, name) if stage in _PARTS else {stage: getattr(suite, stage)})


def _fetch(suite: Suite, name: str | None) -> dict[str, Any]:
    origins: dict[str, Section | None] = {
        "data": suite.data,
        "sft_data": suite.sft.data and suite.sft.data.rows,
        "model": Origin(source=suite.model.source, revision=suite.model.revision, resize=suite.model.resize),
        "tokenizer": Origin(source=str(suite.model.tokenizer), revision=None),
        "classifier": suite.classifier,
        "reward": suite.reward and suite.reward.source,
    }
    key = "evaluated" if reward_set_jobs.set_of(name) else str(name)
    section = reward_set_jobs.rows_of(suite, name) if key == "evaluated" else origins[key]
    base = {"base": base_of_model(suite.model)} if name == "model" and base_of_model(suite.model) else {}
    return {key: section, **base, **({"lock": suite.lock} if repositories_of(suite, name or "") else {})}


def _report(suite: Suite, name: str | None) -> dict[str, Any]:
    runs = [
        {
            "name": run.name,
            "method": run.reported_method,
            "seed": run.preference.seed,
            "objective": {**run.objective.parameters(), **(run.online.shown_options() if run.online else {})},
            "preference": select_jobs.fixed(run, online_of(suite, run.name) if run.online else run.preference),
            **round_jobs.shown_in_report(suite, run),
        }
        for run in suite.runs
    ]
    expected = [entry.model_dump(mode="json") for entry in suite.expected]
    sets = [{"name": str(one), "prompts": prompts_of(suite, one), **_sampling(suite, one)} for one in answers(suite)]
    return {"report": suite.report, "suite": suite.name, "runs": runs, "expected": expected, "answers": sets}


def _sampling(suite: Suite, answer_set: AnswerSet) -> dict[str, Any]:
    """Return the sampling settings that the report shows; none for the chosen responses."""
    keys = {"temperature", "top_p", "max_new_tokens"}
    return {} if answer_set.is_chosen else suite.generate.settings(answer_set.variant).model_dump(include=keys)


def _generate(suite: Suite, name: str | None) -> dict[str, Any]:
    """Return the settings of one set of answers; a change to another set must not rerun this job."""
    answer_set = AnswerSet.parse(name or "")
    settings = suite.generate.settings(answer_set.variant)
    split = {"split": VALIDATION} if select_jobs.is_validation(suite, answer_set) else {}
    if answer_set.is_chosen:
        return {"generate": {"max_prompts": settings.max_prompts}, **split}
    if answer_set.samples is not None:
        return {"generate": generation_of_samples(suite, answer_set.policy), "round": answer_set.samples}
    return {"generate": settings, **_checkpoint(suite, answer_set), **split}


def _score(suite: Suite, name: str | None) -> dict[str, Any]:
    one = AnswerSet.parse(name or "")
    return scoring_of(suite, one.policy) if one.samples else {"score": suite.score, **_checkpoint(suite, one)}


def _checkpoint(suite: Suite, answer_set: AnswerSet) -> dict[str, Any]:
    """Return the step of the answering policy within its training, if it is a checkpoint."""
    if (step := select_jobs.validation_step(suite, answer_set)) is not None:
        return {"checkpoint": step}
    if answer_set.step is None:
        return {}
    steps = suite.run(answer_set.policy).preference.max_steps or 0
    return {"checkpoint": answer_set.step - (round_of(suite, answer_set) - 1) * steps}


def _best_of_n(suite: Suite, name: str | None) -> dict[str, Any]:
    one = suite.score
    return {"best_of_n": BestOfN(selected_by=one.reward, seed=one.seed, bootstrap=one.bootstrap)}


_PARTS = {  # of the stages that read more, or less, than the section of their name
    "fetch": _fetch,
    "sft": lambda suite, name: {"sft": suite.sft.model_dump(mode="json", exclude={"data"})},
    "pretrain": lambda suite, name: {
        "adapter": suite.prepare.adapter,
        "scratch": suite.model.scratch,
        "pretrain": suite.pretrain,
        **({"held_out": suite.prepare.unseen} if suite.prepare.unseen else {}),
    },
    "reward": lambda suite, name: {"reward": suite.reward and suite.reward.as_job()},
    "reference": cache_config,
    "pairs": lambda suite, name: {"pairs": suite.pairs, "prepare": suite.prepare},
    "generate": _generate,
    "score": _score,
    **round_jobs.PARTS,
    **select_jobs.PARTS,
    **reward_set_jobs.PARTS,
    "best_of_n": _best_of_n,
    "report": _report,
}

_EXACT_PARTS = {  # of the stages that read more, or less, than the section of their name
    "exact": lambda suite, name: {"exact": suite.exact, "run": suite.run(name)},
    "report": lambda suite, name: {"report": Report(), "suite": suite.name, "runs": [], "left_out": LEFT_OUT},
}


def _canonical(values: dict[str, Any]) -> str:
    plain = {
        key: value.model_dump(mode="json") if isinstance(value, Section) else value for key, value in values.items()
    }
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def policies(suite: Suite) -> list[str]:
    """Return every policy that is sampled and scored."""
    return [*BEFORE_ALIGNMENT, *(run.name for run in suite.runs)]


def answers(suite: Suite) -> list[AnswerSet]:
    """Return every set of answers that is generated and scored; each policy's own come first."""
    of_policies = [AnswerSet(policy) for policy in policies(suite)]
    of_variants = [
        AnswerSet(policy, name)
        for name, variant in suite.generate.variants.items()
        for policy in variant.policies or policies(suite)
    ]
    of_checkpoints = [
        AnswerSet(run.name, step=number * (run.preference.max_steps or 0) + step)
        for run in suite.runs
        for number in range(run.rounds.rounds if run.rounds else 1)
        for step in run.preference.kept_steps
    ]
    of_rounds = [
        AnswerSet(run.name, round=number)
        for run in suite.runs
        if run.rounds
        for number in range(1, run.rounds.rounds)  # the last round's policy is the run's
    ]
    pool = [AnswerSet("sft", POOL)] if suite.generate.best_of else []
    held_against = suite.judge.against == CHOSEN
    chosen = [AnswerSet(CHOSEN)] if suite.generate.chosen or held_against else []
    if held_against:  # prompts of another distribution need their own references
        chosen += [AnswerSet(CHOSEN, name) for name, one in suite.generate.variants.items() if one.prompts == "ood"]
    return [*of_policies, *of_variants, *of_checkpoints, *of_rounds, *pool, *chosen]


def prompts_of(suite: Suite, answer_set: AnswerSet) -> str:
    """Return which prompts are answered: `test`, or `ood` for those of another input distribution."""
    return suite.generate.prompts_of(answer_set.variant)


def prompts_folder(suite: Suite, answer_set: AnswerSet) -> str:
    """Return the stage folder that holds the prompts, with their best responses."""
    return "prepare/ood" if prompts_of(suite, answer_set) == "ood" else "prepare/comparisons"


def against(suite: Suite, answer_set: AnswerSet) -> AnswerSet | None:
    """Return the answers that a set is judged against: the chosen responses, or SFT's, sampled in the same way if any.

    None for SFT's and the chosen responses themselves, and for the pool, whose win rates are those of Best-of-N.
    """
    if answer_set == AnswerSet("sft", POOL) or answer_set.is_chosen:
        return None
    if select_jobs.is_validation(suite, answer_set):
        return AnswerSet(CHOSEN if suite.judge.against == CHOSEN else "sft", VALIDATION)
    if suite.judge.against == CHOSEN:
        return AnswerSet(CHOSEN, answer_set.variant if prompts_of(suite, answer_set) == "ood" else "")
    if answer_set.policy == "sft":
        return None
    same = AnswerSet("sft", answer_set.variant)
    return same if same in answers(suite) else AnswerSet("sft")


def folder_of(suite: Suite, policy: str) -> str:
    """Return the stage folder, relative to the suite's results, that holds a policy's weights."""
    if policy == "base":
        return "pretrain" if suite.model.from_scratch else "fetch/model"
    return "sft" if policy == "sft" else training_folder(suite, policy)


def training_folder(suite: Suite, run: str) -> str:
    """Return the stage folder of a run's training, the last of its rounds if any.

    It is `policy/<run>` for a policy-gradient method, `online/<run>` for a pair loss on sampled pairs, and
    `selected/<run>` where `select` chooses.
    """
    rounds, online = suite.run(run).rounds, suite.run(run).online
    if suite.run(run).candidates:
        return f"selected/{run}"
    if online:
        return f"{'policy' if online.labels is None else 'online'}/{run}"
    return f"preference/{round_name(run, rounds.rounds) if rounds else run}"


def online_of(suite: Suite, run: str) -> Online:
    """Return the settings of an on-policy run, with the suite's ground truth by its name."""
    settings = suite.run(run).online
    assert settings is not None
    return settings.resolved(suite.score.reward)


def answering_folder(suite: Suite, answer_set: AnswerSet) -> str | None:
    """Return the stage folder of the policy that gives these answers; None for the chosen responses."""
    if answer_set.is_chosen:
        return None
    if answer_set.samples is not None:
        return start_of_round(answer_set.policy, answer_set.samples)
    if answer_set.policy in BEFORE_ALIGNMENT or suite.run(answer_set.policy).rounds is None:
        return folder_of(suite, answer_set.policy)
    return f"preference/{round_name(answer_set.policy, round_of(suite, answer_set))}"


def trainings(suite: Suite) -> list[str]:
    """Return the stage folder of every training of a run, or of each of its rounds."""
    folders = []
    for run in suite.runs:
        numbers = range(1, run.rounds.rounds + 1) if run.rounds else ()
        rounds = [f"preference/{round_name(run.name, number)}" for number in numbers]
        folders += rounds or [training_folder(suite, run.name)]
    return folders


def tokenizer_folder(suite: Suite) -> str | None:
    """Return the folder of the fetched tokenizer of a model from scratch, if it has one."""
    return "fetch/tokenizer" if suite.model.from_scratch and suite.model.tokenizer else None


def classifier_folder(suite: Suite) -> str | None:
    """Return the stage folder of the classifier, trained or fetched; None if the suite has none."""
    if suite.classifier is None:
        return None
    return "classifier" if suite.classifier.is_trained else "fetch/classifier"


def user_files_of(suite: Suite | ExactSuite, stage: str, name: str | None = None) -> tuple[Path, ...]:
    """Return the user's files that a job counts as its code: losses, rewards, adapters, templates, prompts, sheets.

    Args:
        suite: the resolved suite.
        stage: the stage's name.
        name: the job's name if the stage has several jobs.
    """
    if isinstance(suite, ExactSuite):
        return suite.run(str(name)).user_files() if stage == "exact" else ()
    if stage in ("preference", "policy", "online"):
        return round_jobs.user_files_of_run(suite, str(name))
    if stage == "pretrain":
        return adapter_files(suite.prepare.adapter)
    if stage in ("prepare", "pairs"):
        return suite.sft.prepare(suite.prepare, str(name)).user_files()
    if stage in ("score", "gold", "rating"):
        return round_jobs.user_files_of_answers(suite, stage, name or "")
    return suite.judge.user_files() if stage == "judge" else ()


def lock_of(suite: Suite, name: str) -> Any:
    """Return the lock file that a job of `fetch` reads; None if nothing of it comes from the Hub."""
    return _fetch(suite, name).get("lock")


def table_of_report(suite: Suite | ExactSuite) -> str:
    """Return the file name of the report's main table."""
    return "points.csv" if isinstance(suite, ExactSuite) else "runs.csv"
