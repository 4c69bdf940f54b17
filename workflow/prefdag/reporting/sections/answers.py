"""The report's sections of further answers and of judges: their figures by name, and what the page says."""

from typing import Any

from matplotlib.figure import Figure

from prefdag.reporting.figures.answers import by_temperature, on_other_prompts, over_training
from prefdag.reporting.load import SuiteResults
from prefdag.reporting.rows import answers_row, best_of_n_rows, elsewhere_row
from prefdag.reporting.sections.judges import agreements, rates, win_label
from prefdag.reporting.tables import ood_win_rates


def answers_report(found: SuiteResults) -> tuple[dict[str, Figure | None], dict[str, Any]]:
    """Figures, None where a suite has no such answers, and the content of the page's sections."""
    label = win_label(found.judging)
    figures = {
        "temperature": by_temperature(found.answers, label),
        "other_prompts": on_other_prompts(found.answers, label),
        "over_training": over_training(found.answers, label),
    }
    displays = dict(zip(found.runs["run"], found.runs["display"], strict=True))
    content = {
        "judged_by": found.judging.get("judge", "reward"),
        "held_against": found.judging.get("held_against", "sft"),
        "answers": [answers_row(row) for row in found.further_answers.to_dict("records")],
        "elsewhere": [elsewhere_row(row) for row in ood_win_rates(found.answers).to_dict("records")],
        "best_of_n": best_of_n_rows(found.pool),
        "rates": rates(found.wins, displays),
        "agreements": agreements([path for name, path in found.verdicts.items() if name in found.tables]),
    }
    return figures, content
