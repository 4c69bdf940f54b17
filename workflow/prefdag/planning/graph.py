"""The graph of a suite's jobs: which stage folders each job reads, by the option of its command that names them.

A folder such as `score/dpo` names a job and its results below `results/<suite>/`. Rules take their inputs from
`inputs_of`, and `prefdag.planning.freshness` follows it to find the jobs whose results no longer fit the suite.
"""

from collections.abc import Callable

from prefdag.config import jobs
from prefdag.config.answer_sets import POOL, AnswerSet
from prefdag.config.reference_jobs import cache_folder, reads_reference
from prefdag.config.reward_models import reward_set_jobs
from prefdag.config.reward_models.hidden_map import map_inputs
from prefdag.config.reward_models.reward_variant import variants_of
from prefdag.config.round_jobs import is_rated, rounds_of, score_of_samples, start_of_round, user_reward_of
from prefdag.config.rounds import round_name
from prefdag.config.selection import select_jobs
from prefdag.config.suite import ExactSuite, Suite

Inputs = dict[str, list[str]]


def inputs_of(suite: Suite | ExactSuite, stage: str, name: str | None = None) -> Inputs:
    """Return the folders that a job reads, by option; an option without folders is not given to the command.

    Args:
        suite: the resolved suite.
        stage: the stage's name.
        name: the job's name where the stage has several jobs: a run, a dataset, a set of answers, what to fetch.
    """
    if isinstance(suite, ExactSuite):
        return {"exact": [f"exact/{run.name}" for run in suite.runs]} if stage == "report" else {}
    return _INPUTS[stage](suite, name or "") if stage in _INPUTS else {}


def made_before(suite: Suite | ExactSuite, stage: str) -> list[str]:
    """Return the folders that are made before a job although it does not read them.

    Comparisons that are not sampled from SFT come first, so that rows that `prepare` refuses cost no training.
    """
    if isinstance(suite, ExactSuite) or stage != "sft":
        return []
    sampled = suite.pairs is not None
    first = f"prepare/{reward_set_jobs.PREFIX}" if sampled else "prepare/"
    return [folder for folder in jobs_of(suite) if folder.startswith(first)]


def targets_of(suite: Suite | ExactSuite) -> list[str]:
    """Return the folders that `snakemake` makes; it makes those that they read as well."""
    targets = ["report"]
    return targets


def jobs_of(suite: Suite | ExactSuite) -> list[str]:
    """Return every folder of the suite, each after those that it reads."""
    ordered: dict[str, None] = {}

    def visit(folder: str) -> None:
        if folder not in ordered:
            stage, _, name = folder.partition("/")
            for folders in inputs_of(suite, stage, name or None).values():
                for each in folders:
                    visit(each)
            ordered[folder] = None

    for target in targets_of(suite):
        visit(target)
    return list(ordered)


def stages_of(suite: Suite | ExactSuite) -> list[str]:
    """Return the stages of a suite; the rules of the others are not included."""
    return list(dict.fromkeys(folder.partition("/")[0] for folder in jobs_of(suite)))


def _one(folder: str | None) -> list[str]:
    return [folder] if folder else []


def _rows(suite: Suite, dataset: str) -> str:
    if dataset == "demonstrations" and suite.sft.data is not None:
        return "fetch/sft_data"
    sampled = suite.pairs is not None and dataset not in ("demonstrations", "ood")
    return "pairs" if sampled else "fetch/data"


def _prepare(suite: Suite, dataset: str) -> Inputs:
    if reward_set_jobs.set_of(dataset):
        return {"rows": [f"fetch/{dataset}"], "tokenizer": [jobs.folder_of(suite, "base")]}
    return {
        "rows": [_rows(suite, dataset)],
        "tokenizer": [jobs.folder_of(suite, "base")],
        # A held-out prompt may not be one that SFT trains on.
        "demonstrations": [] if dataset == "demonstrations" else ["prepare/demonstrations"],
    }


def _preference(suite: Suite, run: str) -> Inputs:
    number = AnswerSet.parse(run).round
    if number is not None:
        reference, start = _reference_of_round(suite, run), start_of_round(suite.run(run).name, number)
        return {
            "policy": [reference],
            "comparisons": [f"pairing/{run}"],
            "reference": [cache_folder(suite, run)] if reads_reference(suite, run) else [],
            "start": [start] if start != reference else [],
        }
    dataset = suite.run(run).dataset
    return {
        "policy": ["sft"],
        "comparisons": [f"prepare/{dataset}"],
        "reference": [cache_folder(suite, run)] if reads_reference(suite, run) else [],
    }


def _policy(suite: Suite, run: str) -> Inputs:
    settings, method = jobs.online_of(suite, run), suite.run(run).objective
    reads_model = settings.reward == "trained" or getattr(method, "value_from", "policy") == "reward"
    return {
        "policy": ["sft"],
        "prompts": ["prepare/comparisons"],
        "reward": ["reward"] if reads_model else [],
        "classifier": _one(jobs.classifier_folder(suite) if settings.reward == "classifier" else None),
        "implicit": [jobs.training_folder(suite, settings.implicit_run)] if settings.implicit_run else [],
    }


def _reference_of_round(suite: Suite, name: str) -> str:
    """Return the folder of the policy that the loss of a round takes as its reference."""
    one = AnswerSet.parse(name)
    start = start_of_round(one.policy, one.round or 1)
    # A loss without reference measures its log-ratios to where the round starts.
    return "sft" if rounds_of(suite, name).pairs.reference == "sft" else start


def _reference(suite: Suite, name: str) -> Inputs:
    if AnswerSet.parse(name).round is None:
        return {"policy": ["sft"], "comparisons": [f"prepare/{name.partition('-')[0]}"]}
    return {"policy": [_reference_of_round(suite, name)], "comparisons": [f"pairing/{name}"]}


def _pairing(suite: Suite, name: str) -> Inputs:
    one = AnswerSet.parse(name)
    samples = AnswerSet(one.policy, samples=one.round)
    stage = "rating" if is_rated(suite, one.policy) else "score"
    return {"generations": [f"generate/{samples}"], "scores": [f"{stage}/{samples}"]}


def _gold(suite: Suite, name: str) -> Inputs:
    one = AnswerSet.parse(name)
    by_classifier = suite.gold_of_rounds(one.policy) == "classifier"
    return {
        "generations": [f"generate/{AnswerSet(one.policy, samples=one.round)}"],
        "classifier": _one(jobs.classifier_folder(suite) if by_classifier else None),
    }


def _discriminator(suite: Suite, name: str) -> Inputs:
    """The reward model of a round reads the gold labels of this round and of all before it."""
    one = AnswerSet.parse(name)
    number, settings = one.round or 1, rounds_of(suite, name).discriminator
    before = "reward" if number == 1 else f"discriminator/{round_name(one.policy, number - 1)}"
    return {
        "policy": ["sft"],
        "comparisons": ["prepare/comparisons"],
        "gold": [f"gold/{round_name(one.policy, each)}" for each in range(1, number + 1)],
        "start": [before] if settings and settings.start == "previous" else [],
    }


def _score_samples(suite: Suite, name: str) -> Inputs:
    """A round's samples are scored by its reward alone; nothing reads their divergence from SFT."""
    one = AnswerSet.parse(name)
    run = one.policy
    settings = score_of_samples(suite, run)
    has_discriminator = rounds_of(suite, run).discriminator is not None
    trained = f"discriminator/{round_name(run, one.samples or 1)}" if has_discriminator else "reward"
    if user_reward_of(suite, run):
        return {"generations": [f"generate/{name}"], "reference": ["sft"]}
    return {
        "generations": [f"generate/{name}"],
        "reference": ["sft"],
        "reward": [trained] if settings.reward == "trained" else [],
        "implicit": [jobs.training_folder(suite, run) for run in settings.implicit],
        "classifier": _one(jobs.classifier_folder(suite) if settings.reward == "classifier" else None),
    }


def _generate(suite: Suite, name: str) -> Inputs:
    answers = AnswerSet.parse(name)
    policy = jobs.answering_folder(suite, answers)
    return {
        "policy": _one(policy),
        "tokenizer": [] if policy else [jobs.folder_of(suite, "base")],  # a policy has its own
        "comparisons": [jobs.prompts_folder(suite, answers)],
    }


def _score(suite: Suite, name: str) -> Inputs:
    if AnswerSet.parse(name).samples is not None:
        return _score_samples(suite, name)
    return {
        "generations": [f"generate/{name}"],
        "policy": _one(jobs.answering_folder(suite, AnswerSet.parse(name))),
        "reference": ["sft"],
        "reward": ["reward"] if suite.reward else [],
        "implicit": [jobs.training_folder(suite, run) for run in suite.score.implicit],
        "comparisons": ["prepare/comparisons"] if name in suite.score.implicit else [],
        "classifier": _one(jobs.classifier_folder(suite)),
        "variants": variants_of(suite),
    }


def _judge(suite: Suite, name: str) -> Inputs:
    other = jobs.against(suite, AnswerSet.parse(name))
    reads = suite.judge.reads_answers  # models and people read answers; a reward is in the scores
    return {
        "scores": [f"score/{name}"],
        "against": [f"score/{other}"],
        "generations": [f"generate/{name}"] if reads else [],
        "against_generations": [f"generate/{other}"] if reads else [],
    }


def _choose(suite: Suite, row: str) -> Inputs:
    runs = [one for run in suite.runs if run.row == row for one in run.candidates]
    return select_jobs.choose_inputs(suite, row, {run.name: jobs.training_folder(suite, run.name) for run in runs})


def _selected(suite: Suite, name: str) -> Inputs:
    run = suite.run(name)
    return {
        "choice": [f"choose/{run.row}"],
        "candidates": [jobs.training_folder(suite, one.name) for one in run.candidates],
    }


def _report(suite: Suite, name: str) -> Inputs:
    answers = jobs.answers(suite)
    return {
        "scores": [f"score/{each}" for each in answers],
        "judges": [f"judge/{each}" for each in answers if jobs.against(suite, each)],
        "generations": [f"generate/{policy}" for policy in jobs.policies(suite)],
        "preferences": jobs.trainings(suite),
        "comparisons": ["prepare/comparisons"],
        "reward": ["reward"] if suite.reward else [],
        "best_of_n": ["best_of_n"] if suite.generate.best_of else [],
        "policy": ["sft"],
        "choices": list(dict.fromkeys(f"choose/{run.row}" for run in suite.runs if run.candidates)),
        "reward_variants": variants_of(suite),
        "hidden_map": ["hidden_map"] if suite.report.hidden_map else [],
        "reward_sets": [f"evaluate_reward/{name}" for name in suite.evaluate_reward],
    }


_INPUTS: dict[str, Callable[[Suite, str], Inputs]] = {
    "classifier": lambda suite, name: {"data": ["fetch/data"]},
    "pretrain": lambda suite, name: {"data": ["fetch/data"], "tokenizer": _one(jobs.tokenizer_folder(suite))},
    "prepare": _prepare,
    "sft": lambda suite, name: {
        "base": [jobs.folder_of(suite, "base")],
        "demonstrations": ["prepare/demonstrations"],
    },
    "pairs": lambda suite, name: {
        "policy": ["sft"],
        "rows": ["fetch/data"],
        "classifier": _one(
            jobs.classifier_folder(suite) if suite.pairs and suite.pairs.reward == "classifier" else None
        ),
        "reward": ["fetch/reward"] if suite.pairs and suite.pairs.reward == "trained" else [],
    },
    "reward": lambda suite, name: {
        "policy": ["sft"],
        "comparisons": ["prepare/comparisons"],
        "source": ["fetch/reward"] if suite.reward and suite.reward.source else [],
    },
    "evaluate_reward": reward_set_jobs.evaluation_inputs,
    "reward_variant": lambda suite, name: {"policy": ["sft"], "comparisons": ["prepare/comparisons"]},
    "hidden_map": map_inputs,
    "gold": _gold,
    "discriminator": _discriminator,
    "rating": lambda suite, name: {"generations": [f"generate/{name}"]},
    "pairing": _pairing,
    "reference": _reference,
    "preference": _preference,
    "policy": _policy,
    "online": _policy,
    "generate": _generate,
    "score": _score,
    "best_of_n": lambda suite, name: {"scores": [f"score/{AnswerSet('sft', POOL)}"]},
    "judge": _judge,
    "choose": _choose,
    "selected": _selected,
    "report": _report,
}
