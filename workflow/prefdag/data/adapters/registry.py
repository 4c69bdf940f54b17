"""Adapters: raw rows to comparisons of text, one function each.

An adapter returns a `TextComparison` or raises `Unusable` with the reason; the audit counts reasons and names rows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from prefdag.config.adapters import is_user_adapter
from prefdag.data.adapters.pairs import align_anything, hh, pairs, saferlhf_better, saferlhf_safer, shp, tldr
from prefdag.data.adapters.rankings import ranked, stack_exchange, ultrafeedback
from prefdag.data.adapters.records import Prompt, TextComparison, Unusable
from prefdag.data.adapters.singles import demonstrations, imdb, labelled, world
from prefdag.data.adapters.user import load_user_adapter
from prefdag.data.rows import ADAPTER, Row, read_rows
from prefdag.errors import UserError

Adapter = Callable[[Row], TextComparison]
ADAPTERS: dict[str, Adapter] = {
    "world": world,
    "hh": hh,
    "pairs": pairs,
    "ranked": ranked,
    "labelled": labelled,
    "demonstrations": demonstrations,
    "tldr": tldr,
    "imdb": imdb,
    "align-anything": align_anything,
    "saferlhf-better": saferlhf_better,
    "saferlhf-safer": saferlhf_safer,
    "ultrafeedback": ultrafeedback,
    "shp": shp,
    "stack-exchange": stack_exchange,
}


def adapter_of(name: str) -> Adapter:
    """The adapter of that name, or the function of a user's own file; a row of a mixture may name its source's own."""
    default = load_user_adapter(name) if is_user_adapter(name) else ADAPTERS[name]

    def adapt(row: Row) -> TextComparison:
        return ADAPTERS[row[ADAPTER]](row) if ADAPTER in row else default(row)

    return adapt


def iter_comparisons(adapter: str, path: Path) -> Iterator[TextComparison]:
    """The comparison of every usable row."""
    adapt = adapter_of(adapter)
    for row in read_rows(path):
        try:
            yield adapt(row)
        except Unusable:
            continue


def iter_documents(adapter: str, folder: Path, split: str = "train") -> Iterator[str]:
    """Whole documents to pre-train on: prompt and best response of every usable row of a split."""
    path = folder / f"{split}.jsonl"
    if path.is_file():
        for comparison in iter_comparisons(adapter, path):
            yield as_text(comparison.prompt) + comparison.responses[0]


def as_text(prompt: Prompt) -> str:
    """A prompt as plain text; turns become the transcript that HH's dialogues are written in."""
    if isinstance(prompt, str):
        return prompt
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    return "".join(names.get(role, f"\n\n{role}: ") + content for role, content in prompt) + "\n\nAssistant:"


def has_prompts(folder: Path, split: str) -> bool:
    return any(path.is_file() for path in _files(folder, split))


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"prompts-{split}.jsonl", folder / f"{split}.jsonl"


def iter_prompts(folder: Path, adapter: str, split: str) -> Iterator[Prompt]:
    """Distinct prompts of a split to sample responses to, in the order in which they come.

    They stand in prompts-<split>.jsonl where the source has such a file, and are those of its comparisons otherwise.
    """
    own, rows = _files(folder, split)
    if not has_prompts(folder, split):
        raise UserError(
            f"{folder}: holds no prompts for the {split} split; name a `{split}` file in the suite's `data`"
        )
    found: Iterator[Prompt] = (
        (str(row["prompt"]) for row in read_rows(own))
        if own.is_file()
        else (comparison.prompt for comparison in iter_comparisons(adapter, rows))
    )
    yield from dict.fromkeys(found)
