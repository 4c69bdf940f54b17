"""Two pages about a dataset: its audit, and rows as the model sees them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from prefdag.audit import findings
from prefdag.store import Store

SHOWN = 20
AUDIT, SAMPLES = "audit.html.jinja", "samples.html.jinja"


def audit_page(report: Mapping[str, Any]) -> str:
    """audit.json as an HTML page: findings first, then counts, then histograms of lengths."""
    told = {split: findings(split, audit) for split, audit in report["splits"].items()}
    return _filled(AUDIT, report=report, findings=told)


def samples_page(store: Store, tokenizer: PreTrainedTokenizerBase, title: str) -> str:
    """An HTML page of the first rows as the model sees them: every token, its id, its role."""
    roles = ["prompt", *(("chosen", "rejected") if store.num_responses == 2 else ["response"] * store.num_responses)]
    special = set(tokenizer.all_special_ids)
    rows = []
    for index in range(min(SHOWN, len(store))):
        comparison = store[index]
        parts = zip(roles, [comparison.prompt, *comparison.responses], strict=True)
        shown = [
            {"role": role, "tokens": [(int(i), _visible(tokenizer, int(i)), int(i) in special) for i in ids]}
            for role, ids in parts
        ]
        rows.append({"row": int(store.rows[index]), "parts": shown})
    return _filled(SAMPLES, title=title, rows=rows)


def _visible(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = str(tokenizer.decode([token]) or tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "\u21b5\n")


def _filled(template: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**content)
