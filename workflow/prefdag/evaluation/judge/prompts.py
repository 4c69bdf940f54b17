"""The prompts of a judge, after appendix C.2 of the DPO paper in our own words, and the parsing of its answers."""

import re
from pathlib import Path

from prefdag.config.judge import LLM
from prefdag.errors import UserError

SHIPPED = {
    "summarisation-simple": "summarisation-simple.txt",
    "summarisation-concise": "summarisation-concise.txt",
    "dialogue-helpfulness": "dialogue-helpfulness.txt",
}
PLACES = ("{prompt}", "{A}", "{B}")
PLACE = re.compile("|".join(map(re.escape, PLACES)))
# The last line after its colon: a letter, optionally after a noun, in any quotes or stars; nothing else.
CHOICE = re.compile(r"(?:.*:)?[\W_]*(?:(?:Summary|Reply|Response|Answer)\s+)?(A|B|(?i:tie))[\W_]*")


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


def parse_choice(answer: str) -> str | None:
    """Return `A`, `B` or `tie` from the last non-empty line of an answer; None where it is none of them."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    match = CHOICE.fullmatch(lines[-1]) if lines else None
    return (match[1] if match[1] in "AB" else "tie") if match else None
