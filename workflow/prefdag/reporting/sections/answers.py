"""The page's sections of further answers and of judges."""

from typing import Any

from prefdag.reporting.load import SuiteResults
from prefdag.reporting.rows import answers_row, best_of_n_rows, ood_row
from prefdag.reporting.sections.judges import agreements, rates
from prefdag.reporting.tables import ood_win_rates


def answers_content(results: SuiteResults) -> dict[str, Any]:
    """Return what the page shows of variants, checkpoints, Best-of-N and judges."""
    return {
        "judged_by": results.judging.get("judge", "reward"),
        "held_against": results.judging.get("held_against", "sft"),
        "answers": [answers_row(row) for row in results.further_answers.to_dict("records")],
        "other_prompts": [ood_row(row) for row in ood_win_rates(results.answers).to_dict("records")],
        "best_of_n": best_of_n_rows(results.pool),
        "rates": rates(results.wins, results.display),
        "agreements": agreements([path for name, path in results.verdicts.items() if name in results.tables]),
    }
