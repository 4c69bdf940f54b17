"""Ask a local model which answer of each judged pair is better, in both orders, and write its verdicts.

The model reads a judge's question in its chat template and the beginning of a verdict, such as `Preferred:`. Its
log-probs of A and B are compared; nothing is sampled. Two judges are written: `<name>`, for which a pair is a tie if
the verdict follows the order, and `<name>-averaged`, which adds the log-odds of both orders. `prefdag winrate FILE
VERDICTS` then prints order bias, and agreement with the file's own labels.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefdag.config.sections.judge import LLM, PROMPTS
from prefdag.errors import UserError
from prefdag.evaluation.judge.prompts import read_template, render_question
from prefdag.evaluation.judge.run import Pair
from prefdag.evaluation.verdicts import read_judged_pairs
from prefdag.seeds import generator

COLUMNS = ("prompt_id", "sample", "judge", "verdict", "shown_first", "shown_second")
ODDS = ("log_odds_first", "log_odds_second")  # of ours over theirs
TOKENS_PER_BATCH = 2048
Values = NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a judged csv: query, two responses, and the one that is preferred")
    parser.add_argument(
        "model", type=Path, help="folder of a model and its tokenizer, such as results/<suite>/sft/model"
    )
    parser.add_argument("verdicts", type=Path, help="the verdicts, a .csv file")
    parser.add_argument("--name", default="", help="the judge's name (default: the suite and stage of the folder)")
    parser.add_argument("--prompt", default=PROMPTS[1], help=f"{', '.join(PROMPTS)}, or a file (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=100, help="how many pairs to sample (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Sample judged pairs, compute the log-odds in both orders, and write two judges' verdicts."""
    if arguments.verdicts.suffix != ".csv" or arguments.pairs < 1 or arguments.threads < 1:
        raise UserError("ask: expected verdicts in a .csv file, and at least one pair and one thread")
    template = read_template(LLM.parse({"model": "local", "prompt": arguments.prompt}, "ask"))
    pairs = read_judged_pairs(arguments.file)
    sampled = [pairs[index] for index in generator(0, "ask").permutation(len(pairs))[: arguments.pairs]]
    first, second = log_odds(sampled, template, arguments.model, arguments.threads)
    name = arguments.name or "-".join(arguments.model.parts[-3:-1]) or arguments.model.name
    write_verdicts(arguments.verdicts, sampled, name, first, second)
    print(f"{arguments.verdicts}: {len(sampled)} of {len(pairs)} judged pairs, each in both orders")
    return 0


def log_odds(pairs: Sequence[Pair], template: str, folder: Path, threads: int) -> tuple[Values, Values]:
    """Return log P(ours) - log P(theirs) with ours shown first, and with ours shown second, [N] each.

    Args:
        pairs: the pairs of answers.
        template: a judge's prompt, whose last line is the form of the verdict.
        folder: of the model and its tokenizer; an adapter is merged into its base.
        threads: of torch.
    """
    from prefdag.data.token_store import Comparison
    from prefdag.data.tokenization import encode_texts, load_tokenizer
    from prefdag.models.loading import load_policy, set_up
    from prefdag.models.logprobs import logprobs
    from prefdag.rewards.evaluation import score_all

    if not (folder / "config.json").is_file():
        raise UserError(f"ask: {folder} holds no config.json; name the folder of a model and its tokenizer")
    tokenizer = load_tokenizer(folder)
    label, colon, _ = template.rpartition("\n")[2].partition(":")
    if not colon:
        raise UserError("ask: the prompt's last line is not the form of a verdict; end it with `Preferred: <A or B>`")
    texts = []
    for pair in pairs:
        for answers in ((pair.ours, pair.theirs), (pair.theirs, pair.ours)):
            post = pair.prompt.rstrip().removesuffix("TL;DR:").rstrip()
            question = render_question(template, post, *answers)
            if tokenizer.chat_template:
                turns = [{"role": "user", "content": question}]
                opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            else:
                opened = f"{question}\n\n"
            texts.append(f"{opened}{label}:")
    letters = tuple(np.array(ids, dtype=np.int32) for ids in encode_texts(tokenizer, [" A", " B"]))
    questions = [Comparison(np.array(ids, dtype=np.int32), letters) for ids in encode_texts(tokenizer, texts)]
    _check_context(folder, max(len(one.prompt) + max(map(len, letters)) for one in questions))
    device = set_up(threads)
    model = load_policy(folder, device).eval()
    values = score_all(lambda segments: logprobs(model, segments).total, questions, TOKENS_PER_BATCH, device)
    of_a = (values[:, 0] - values[:, 1]).astype(np.float64)
    return of_a[::2], -of_a[1::2]


def _check_context(folder: Path, longest: int) -> None:
    """Raise `UserError` if a question is longer than what the model can see. longest: tokens of the longest one."""
    from prefdag.cli.size import context_of

    context = context_of(folder)
    if context is not None and longest > context:
        raise UserError(
            f"ask: the longest question has {longest:,} tokens, beyond the context of {context:,} of the model in "
            f"{folder}; ask a model of a longer one, or about shorter pairs"
        )


def write_verdicts(path: Path, pairs: Sequence[Pair], name: str, first: Values, second: Values) -> None:
    """Write a row per judge and pair, in the form of a suite's verdicts.csv. first, second: log-odds of ours, [N]."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*COLUMNS, *ODDS])
        for pair, *odds in zip(pairs, first.tolist(), second.tolist(), strict=True):
            orders = [wins(one) for one in odds]
            writer.writerow([pair.prompt, 0, name, sum(orders) / 2, *orders, *odds])
            writer.writerow([pair.prompt, 0, f"{name}-averaged", wins(sum(odds)), "", "", *odds])


def wins(odds: float) -> float:
    """Return the verdict of log-odds: 1 above 0, 0 below, 0.5 at 0."""
    return 0.5 * (1 + (odds > 0) - (odds < 0))
