"""What a model is asked, after appendix C.2 of the DPO paper in our own words, and how its answer is read."""

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
# The last line after its colon: a letter, perhaps after a noun, in whatever quotes and stars; nothing else.
CHOICE = re.compile(r"(?:.*:)?[\W_]*(?:(?:Summary|Reply|Response|Answer)\s+)?(A|B|(?i:tie))[\W_]*")


def read_template(judge: LLM) -> str:
    """The text with its places for {prompt}, {A} and {B}. Raises `UserError` for a file that lacks one."""
    path = Path(__file__).parent / SHIPPED[judge.prompt] if judge.prompt in SHIPPED else Path(judge.prompt)
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the judge's prompt cannot be read ({error}); give a file of UTF-8 text") from None
    for place in PLACES:
        if place not in text:
            raise UserError(f"{path}: has no {place}; a judge's prompt must hold {', '.join(PLACES)}")
    return text


def render_question(template: str, prompt: str, first: str, second: str) -> str:
    """The template with its places filled, once: an answer that holds `{B}` itself stays what it is."""
    texts = dict(zip(PLACES, (prompt, first, second), strict=True))
    return PLACE.sub(lambda place: texts[place[0]], template)


def parse_choice(answer: str) -> str | None:
    """`A`, `B` or `tie` by the answer's last line that is not empty; None where it says none of them."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    found = CHOICE.fullmatch(lines[-1]) if lines else None
    return (found[1] if found[1] in "AB" else "tie") if found else None
