"""What became of the answers without a verdict: counts for the summary, and lines for the log and the console."""

import math
from collections.abc import Iterator, Sequence

from prefdag.evaluation.judge.cache import Answer
from prefdag.evaluation.judge.run import Verdict
from prefdag.evaluation.scores import Key

SHOWN, SAMPLES, WIDTH = 10, 3, 200  # refusals named, answers shown, letters of each


def count_lost(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count the answers that state no verdict (`unparsable`), those that were cut, and those that were refused."""
    answers = [answer for verdict in verdicts for answer in verdict.answers]
    cut = sum(answer.cut for answer in answers)
    refused = sum(answer.refused for answer in answers)
    without = sum(math.isnan(side) for one in verdicts for side in (one.shown_first, one.shown_second))
    return {"unparsable": without - cut - refused, "cut": cut, "refused": refused}


def lost_answers(judge: str, keys: Sequence[Key], verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Name what was refused, count what was cut, and show samples where not one verdict can be read."""
    counts, total = count_lost(verdicts), 2 * len(verdicts)
    refused = [
        (key, answer) for key, one in zip(keys, verdicts, strict=True) for answer in one.answers if answer.refused
    ]
    if refused:
        named = "; ".join(f"prompt {prompt} sample {sample} ({one.ended})" for (prompt, sample), one in refused[:SHOWN])
        more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        yield f"judge {judge}: refused {len(refused)} of {total} questions, which are left out: {named}{more}"
    if counts["cut"]:
        yield (
            f"judge {judge}: {counts['cut']} of {total} answers were cut at the limit of tokens and have no verdict; "
            "raise max_tokens (or max_completion_tokens)"
        )
    if total and sum(counts.values()) == total:
        samples = [answer for one in verdicts for answer in one.answers if not answer.refused][:SAMPLES]
        yield (
            f"judge {judge}: no verdict could be read in any of {total} answers, so it has no win rate; correct its "
            f"prompt or `reader`{''.join(map(_sample, samples))}"
        )


def _sample(answer: Answer) -> str:
    text = answer.text if len(answer.text) <= WIDTH else f"{answer.text[:WIDTH]}..."
    return f"\n  an answer, ended by {answer.ended}: {text!r}"
