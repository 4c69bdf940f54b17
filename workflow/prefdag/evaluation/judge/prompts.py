"""The prompts of a judge, after appendix C.2 of the DPO paper in our own words."""

import re
from pathlib import Path

from prefdag.config.sections.judge import LLM
from prefdag.errors import UserError

SHIPPED = {
    "summarisation-simple": "summarisation-simple.txt",
    "summarisation-concise": "summarisation-concise.txt",
    "dialogue-helpfulness": "dialogue-helpfulness.txt",
}
PLACES = ("{prompt}", "{A}", "{B}")
PLACE = re.compile("|".join(map(re.escape, PLACES)))


def read_template(judge: LLM) -> str:
    """Read a prompt with the placeholders {prompt}, {A} and {B}. Raises `UserError` where one is missing."""
    path = Path(__file__).parent / SHIPPED[judge.prompt] if judge.prompt in SHIPPED else Path(judge.prompt)
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the judge's prompt cannot be read ({error}); give a file of UTF-8 text") from None
    for place in PLACES:
        if place not in text:
            raise UserError(f"{path}: has no {place}; a judge's prompt must contain {', '.join(PLACES)}")
    return text


def render_question(template: str, prompt: str, first: str, second: str) -> str:
    """Fill the placeholders in one pass, so that an answer that contains `{B}` is not changed."""
    texts = dict(zip(PLACES, (prompt, first, second), strict=True))
    return PLACE.sub(lambda place: texts[place[0]], template)
