"""Find adapters by name, and read the comparisons, documents and prompts of fetched rows with them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from prefdag.config import adapters
from prefdag.data.adapters import builtin
from prefdag.data.adapters.dialogues import with_context
from prefdag.data.adapters.records import Adapter, Prompt, TextComparison, Unusable, as_text
from prefdag.data.rows import ADAPTER, Row, read_rows
from prefdag.errors import Stopped, UserError
from prefdag.provenance.user_code import describe_error, import_user_file

ADAPTERS: dict[str, Adapter] = {name: getattr(builtin, name.replace("-", "_")) for name in adapters.ADAPTERS}


def adapter_of(name: str) -> Adapter:
    """Return the adapter of that name, or a user's function. A row of a mixture may name the adapter of its source.

    The package's adapters read `system` and `tools` of any row; a user's function reads what it likes.
    """
    users = load_user_adapter(name) if adapters.is_user_adapter(name) else None

    def adapt(row: Row) -> TextComparison:
        if users and ADAPTER not in row:
            return users(row)
        try:
            comparison = ADAPTERS[row.get(ADAPTER, name)](row)
        except (Unusable, Stopped, UserError):
            raise
        except Exception as error:
            raise Unusable(f"not a row of this adapter ({type(error).__name__}: {str(error)[:60]})") from error
        if not (row.get("system") or row.get("tools")):
            return comparison
        return replace(comparison, prompt=with_context(comparison.prompt, row))

    return adapt


def load_user_adapter(name: str) -> Adapter:
    """Return the function that `<file>.py:<function>` names, with its mistakes turned into `UserError`.

    Raises `UserError` if the file cannot be imported or has no such function.
    """
    path, function = adapters.split_adapter(name)
    adapt = getattr(import_user_file(path), function, None)
    if not callable(adapt):
        raise UserError(f"prepare.adapter: {path} holds no function {function}; correct its name")

    def checked(row: Row) -> TextComparison:
        try:
            comparison = adapt(row)
        except (Unusable, Stopped):
            raise
        except Exception as error:
            raise UserError(
                f"{path}: {function} raised {describe_error(error, path)} on the row {str(row)[:80]}; fix the function"
            ) from error
        if not isinstance(comparison, TextComparison):
            raise UserError(
                f"{path}: {function} must return a prefdag.data.adapters.records.TextComparison, "
                f"got {type(comparison).__name__}"
            )
        return comparison

    return checked


def iter_comparisons(adapter: str, path: Path) -> Iterator[TextComparison]:
    """Iterate over the comparisons of the usable rows of a file."""
    adapt = adapter_of(adapter)
    for row in read_rows(path):
        try:
            yield adapt(row)
        except Unusable:
            continue


def iter_documents(
    adapter: str, folder: Path, split: str = "train", reads: Callable[[str], bool] = lambda prompt: True
) -> Iterator[str]:
    """Iterate over documents to pre-train on: prompt and best response of every usable row of a split.

    Args:
        adapter: how rows are read.
        folder: the fetched rows.
        split: the split whose rows are read.
        reads: whether the row of a prompt is read.
    """
    path = folder / f"{split}.jsonl"
    if path.is_file():
        for comparison in iter_comparisons(adapter, path):
            prompt = as_text(comparison.prompt)
            if reads(prompt):
                yield prompt + comparison.responses[0]


def has_prompts(folder: Path, split: str) -> bool:
    """Return whether fetched rows hold prompts for a split."""
    return any(path.is_file() for path in _prompt_files(folder, split))


def iter_prompts(folder: Path, adapter: str, split: str) -> Iterator[Prompt]:
    """Iterate over the distinct prompts of a split in the order of the rows.

    They come from prompts-<split>.jsonl if there is such a file, else from the comparisons of the split.
    """
    prompt_file, rows = _prompt_files(folder, split)
    if not has_prompts(folder, split):
        raise UserError(
            f"{folder}: holds no prompts for the {split} split; name a `{split}` file in the suite's `data`"
        )
    prompts: Iterator[Prompt] = (
        (str(row["prompt"]) for row in read_rows(prompt_file))
        if prompt_file.is_file()
        else (comparison.prompt for comparison in iter_comparisons(adapter, rows))
    )
    yield from dict.fromkeys(prompts)


def _prompt_files(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"prompts-{split}.jsonl", folder / f"{split}.jsonl"
