"""Guess what a suite must state from the user's rows, tokenizer and model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from prefdag.config.data import ADDRESS, HUB
from prefdag.data.adapters.dialogues import parse_dialogue
from prefdag.data.adapters.records import TextComparison, Unusable
from prefdag.data.adapters.registry import ADAPTERS
from prefdag.data.prompt_templates import ChatTemplate
from prefdag.data.rows import FORMATS, PACKED, Row, read_rows
from prefdag.errors import UserError

ROWS = 200  # read to guess from
SPLIT_NAMES = {
    "train": re.compile(r"(^|[^a-z])train", re.I),
    "validation": re.compile(r"(^|[^a-z])(val|valid|validation|dev)([^a-z]|$)", re.I),
    "test": re.compile(r"(^|[^a-z])(test|eval)([^a-z]|$)", re.I),
}
# Column names of other projects, tried where no adapter reads the rows as they are.
SYNONYMS = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "context", "post", "user"),
    "chosen": ("chosen", "preferred", "accepted", "better", "winner", "good", "positive", "response_chosen")
    + ("chosen_response", "output_chosen", "answer_chosen", "best", "win"),
    "rejected": ("rejected", "dispreferred", "worse", "loser", "bad", "negative", "response_rejected")
    + ("rejected_response", "output_rejected", "answer_rejected", "worst", "lose"),
}
# Where several adapters read the same rows, by the same number: `pairs` would take responses to be sorted already.
PREFERENCE = ("ranked", "pairs", "hh", "labelled", "demonstrations")
# HH's dialogue for a model without a chat template, with the end of the turn after each response.
DIALOGUE = (
    '{%- set names = {"system": "System: ", "user": "\\n\\nHuman: ", "assistant": "\\n\\nAssistant: "} -%}\n'
    "{%- for message in messages -%}\n"
    '{%- if message.role not in names or (message.role == "system" and not loop.first) %}'
    '{{ raise_exception("no place for a turn of " + message.role) }}{% endif -%}\n'
    '{{- names[message.role] + message.content + (eos_token if message.role == "assistant" else "") -}}\n'
    "{%- endfor -%}\n"
    '{{- "\\n\\nAssistant:" if add_generation_prompt -}}\n'
)


@dataclass(frozen=True)
class Rows:
    """How rows are read.

    Attributes:
        data: the suite's section `data`.
        adapter: name of the adapter.
        comparisons: the usable ones of the first rows.
        dropped: number of the first rows that cannot be used, by reason.
        columns: names of the columns, in order.
    """

    data: dict[str, object]
    adapter: str
    comparisons: list[TextComparison]
    dropped: Mapping[str, int]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Writing:
    """How prompts and responses are written. jinja: text of a template file to write, if the tokenizer has none."""

    template: str
    system: str | None
    bos: bool
    end_of_turn: str
    jinja: str | None = field(default=None, repr=False)


def data_section(source: str) -> tuple[dict[str, object], Path]:
    """Return the section `data` for a local file or folder, and a file of its training rows.

    Raises:
        UserError: it is not local, does not exist, or holds no file of rows.
    """
    if source.startswith(HUB) or ADDRESS.match(source):
        raise UserError(f"init --data: {source} is not on this machine; download it, or start from a suite in configs/")
    path = Path(source)
    if path.is_file():
        return {"source": source}, path
    if not path.is_dir():
        raise UserError(f"init --data: {source}: no such file or folder")
    files = sorted(one for one in path.rglob("*") if one.is_file() and _format_of(one))
    if not files:
        raise UserError(f"init --data: {source} holds no file of rows ({', '.join(FORMATS)})")
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = str(file.relative_to(path))
        split = next((split for split in ("test", "validation", "train") if SPLIT_NAMES[split].search(name)), "train")
        splits.setdefault(split, []).append(file)
    if "train" not in splits:
        raise UserError(f"init --data: {source}: no file of training rows; name one file, or one with `train` in it")
    named = {split: _pattern(path, splits[split], files) for split in SPLIT_NAMES if split in splits}
    return {"source": source, **named}, splits["train"][0]


def _format_of(path: Path) -> str | None:
    suffix = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    return suffix if suffix in FORMATS else None


def _pattern(folder: Path, files: Sequence[Path], others: Sequence[Path]) -> str:
    """Return the name of one file, or a glob that matches these files and none of the others."""
    names = [str(file.relative_to(folder)) for file in files]
    if len(names) == 1:
        return names[0]
    start = re.match(r"[^*]*?(?=\W|\d|$)", names[0])
    for pattern in (f"{start[0]}*" if start else "*", *(f"*{_format_of(file)}*" for file in files[:1]), "*"):
        if sorted(folder.glob(pattern)) == sorted(files):
            return pattern
    raise UserError(
        f"init --data: {folder}: no glob matches {', '.join(names[:3])} and none of the {len(others)} other files; "
        "move the files of each split to a folder of its own"
    )


def guess_rows(data: dict[str, object], path: Path, adapter: str | None = None) -> Rows:
    """Find the adapter, and the columns to rename, that use the most of the first rows.

    Args:
        data: the section `data`.
        path: a file of training rows.
        adapter: the adapter to take; None tries all.

    Raises:
        UserError: no adapter reads the rows.
    """
    rows = list(islice(read_rows(path), ROWS))
    if not rows:
        raise UserError(f"init --data: {path} holds no rows")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    best = max((_read(data, name, rows, columns) for name in ([adapter] if adapter else ADAPTERS)), key=_rank)
    if not best.comparisons and (renamed := _renamed(columns)):
        renamed_rows = [{**row, **{name: row.get(column) for name, column in renamed.items()}} for row in rows]
        best = _read({**data, "columns": renamed}, adapter or "pairs", renamed_rows, columns)
    if not best.comparisons:
        reasons = "; ".join(f"{number} rows: {reason}" for reason, number in best.dropped.items())
        raise UserError(
            f"init --data: {path}: no adapter reads these rows with the columns {', '.join(columns)} ({reasons}); "
            "name prompt, chosen and rejected, or write an adapter (docs/howto/data.md)"
        )
    return best


def _read(data: dict[str, object], adapter: str, rows: Iterable[Row], columns: tuple[str, ...]) -> Rows:
    comparisons, dropped = [], Counter[str]()
    for row in rows:
        try:
            comparisons.append(ADAPTERS[adapter](row))
        except Unusable as reason:
            dropped[str(reason)] += 1
        except Exception as error:  # an adapter of another format meets anything
            dropped[f"{adapter} raised {type(error).__name__}"] += 1
    return Rows(data, adapter, comparisons, dropped, columns)


def _rank(rows: Rows) -> tuple[int, int, int]:
    """Rank adapters: usable comparisons, then usable rows, then a fixed order; HH's dialogues are read by `hh`."""
    compared = sum(len(one.responses) > 1 for one in rows.comparisons)
    order = [*PREFERENCE, *(name for name in ADAPTERS if name not in PREFERENCE)]
    place = -order.index(rows.adapter)
    if rows.adapter == "hh" and "prompt" not in rows.columns:
        place = 1
    return compared, len(rows.comparisons), place


def _renamed(columns: Sequence[str]) -> dict[str, str] | None:
    """Return the columns of prompt, chosen and rejected by their usual names elsewhere, None if one is missing."""
    known = {re.sub(r"\W+", "_", column.strip().lower()): column for column in columns}
    named = {name: next((known[one] for one in names if one in known), None) for name, names in SYNONYMS.items()}
    if named["chosen"] is None or named["rejected"] is None or named["prompt"] is None:
        return None
    return {name: column for name, column in named.items() if column is not None and column != name}


def guess_writing(tokenizer: PreTrainedTokenizerBase, comparisons: Sequence[TextComparison]) -> Writing:
    """Choose template, system prompt, BOS and end-of-turn: the tokenizer's chat template if it has one."""
    if tokenizer.chat_template:
        return _chat(tokenizer)
    eos = "eos" if tokenizer.eos_token else "none"
    adds = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    bos = tokenizer.bos_token_id is not None and (adds or not all(one.prompt for one in comparisons))
    if eos == "eos" and any(_runs_together(one) or _opens_with_system(one) for one in comparisons):
        return Writing("", None, bos, eos, DIALOGUE)
    return Writing("plain", None, bos, eos)


def _runs_together(one: TextComparison) -> bool:
    """Whether a text prompt and its response would be written without a space between them."""
    prompt, response = one.prompt, one.responses[0]
    return (
        isinstance(prompt, str)
        and parse_dialogue(prompt) is None
        and not prompt[-1:].isspace()
        and not response[:1].isspace()
    )


def _opens_with_system(one: TextComparison) -> bool:
    return not isinstance(one.prompt, str) and one.prompt[:1] != () and one.prompt[0][0] == "system"


def _chat(tokenizer: PreTrainedTokenizerBase) -> Writing:
    """Read the system prompt that the chat template adds, and the token that ends a response, off what it writes."""
    system = ChatTemplate(tokenizer, None, None).default_system()  # the suite must state the template's own
    template = ChatTemplate(tokenizer, None, system)
    rendered = template.prompt("x")
    after = template.response("x", rendered, "yes").partition("yes")[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_ids_to_tokens(ids[0]) if ids else "eos"
    return Writing("chat", system, False, "eos" if end == tokenizer.eos_token else str(end))
