"""`prefdag plan SUITE [MORE ...]`: GPU hours and memory, from counts of tokens and parameters; requests to judges."""

import argparse
import json
from pathlib import Path

from prefdag.config.judge import LLM, name_of
from prefdag.config.size import Size
from prefdag.config.suite import Suite, read_ordinary_suite
from prefdag.errors import UserError
from prefdag.estimate import costs
from prefdag.judging.asking import FOLDER, Pair, Questions, pairs_of
from prefdag.plan import against, policies
from prefdag.scores import Scores, matched, read_answers


def main(argv: list[str]) -> int:
    """Print a line per stage and their sum. Tokens are the audit's where the suite's data is prepared.

    Where models judge, first how many requests they take, and how many remain of those whose answers are there.
    """
    parser = argparse.ArgumentParser(prog="prefdag plan", description=main.__doc__)
    parser.add_argument("suite", nargs="+", help="configs/<suite>.yaml, and files merged over it")
    suite = read_ordinary_suite(parser.parse_args(argv).suite)
    for judge in suite.judge.models:
        print(requests(suite, judge, Path("results") / suite.name))
    size, counted = sized(suite, Path("results") / suite.name / "prepare/comparisons/audit.json")
    found = costs(suite, size)
    tokens = f"{size.prompt_tokens} + 2 x {size.response_tokens} tokens ({counted})"
    print(f"{suite.name}: {size.parameters:.3g} parameters, {size.comparisons:,} comparisons of {tokens}")
    print("estimated for one H100 at 40 % of its bf16 peak, nothing measured")
    print(f"{'stage':12} {'jobs':>5} {'GPU hours':>10} {'GB':>6}")
    for one in found:
        print(f"{one.stage:12} {one.jobs:5} {one.hours:10.2f} {one.gigabytes:6.0f}")
    print(f"{'all':12} {'':5} {sum(one.hours for one in found):10.2f} {max(one.gigabytes for one in found):6.0f}")
    return 0


def requests(suite: Suite, judge: LLM, results: Path) -> str:
    """What a judge has yet to be asked, in a sentence; without generations as many as the suite's numbers say."""
    prompts, counted, remaining, expected = _prompts(suite), 0, 0, 0
    for name in policies(suite):
        other = against(suite, name)
        folders = [results / "generate" / side for side in (name, other) if side]
        if other and all((folder / "generations.jsonl").is_file() for folder in folders):
            questions = Questions(judge, _pairs(folders[0], folders[1], suite), results / FOLDER)
            counted, remaining = counted + len(questions), remaining + len(questions.remaining)
        elif other:
            expected += 2 * prompts * suite.generate.num_samples
    parts = [f"{remaining:,} of {counted:,} requests remain"] if counted else []
    parts += [f"{expected:,} requests for answers that are not there yet"] if expected else []
    return f"judge {name_of(judge)}: {', and '.join(parts)}; repeated ones not counted"


def _prompts(suite: Suite) -> int:
    return suite.generate.max_prompts or (suite.size.comparisons // 10 if suite.size else 0)


def _pairs(generations: Path, other: Path, suite: Suite) -> list[Pair]:
    ours, theirs = (Scores(folder, list(read_answers(folder)), {}) for folder in (generations, other))
    rows = matched(ours, theirs, more=suite.judge.against == "chosen")
    return pairs_of(generations, other, [(ours.keys[row], theirs.keys[place]) for row, place in rows])


def sized(suite: Suite, audit: Path) -> tuple[Size, str]:
    """The suite's size, and where its tokens were counted. Raises `UserError` where it states none."""
    if suite.size is None:
        raise UserError(f"{suite.name}: size is missing: state parameters, layers, hidden_size, comparisons and tokens")
    if not audit.is_file():
        return suite.size, "as the suite states"
    train = json.loads(audit.read_text())["splits"]["train"]
    used, tokens = train["used"], train["tokens"]
    responses = (tokens["chosen"]["total"] + tokens["rejected"]["total"]) / (2 * used)
    counts = {"prompt_tokens": tokens["prompt"]["total"] / used, "response_tokens": responses, "comparisons": used}
    return suite.size.model_copy(update={name: round(count) for name, count in counts.items()}), "counted by the audit"
