"""Check the first rows of local files while a run is planned: what `prepare` would refuse in all of them."""

from collections import Counter
from itertools import islice
from pathlib import Path

from prefdag.config.adapters import is_user_adapter
from prefdag.config.data import ADDRESS, HUB, Data, Source
from prefdag.config.prepare import Prepare
from prefdag.config.suite import ExactSuite, Suite
from prefdag.data.adapters.records import Unusable
from prefdag.data.adapters.registry import adapter_of, iter_comparisons
from prefdag.data.mixture import iter_source_rows
from prefdag.data.sources.resolve import SourceFiles
from prefdag.data.splits import held_out_shares
from prefdag.errors import UserError

ROWS = 20  # read of each source
SMALL = 1 << 16  # bytes; so small a file is read as a whole


def check_first_rows(suite: Suite | ExactSuite) -> None:
    """Read the first training rows of each local source with its adapter.

    A missing file is left to `fetch`, and a user's adapter to `prepare`, because importing it may take long.

    Raises:
        UserError: no row of a source can be used, or a small file has too few prompts to split.
    """
    if isinstance(suite, ExactSuite):
        return
    _check_rows("data", suite.data, suite.prepare)
    _check_number(suite.data, suite.prepare, ("validation", "test") if suite.pairs is None else ())
    if suite.sft.data is not None:
        prepare = suite.sft.prepare(suite.prepare, "demonstrations")
        _check_rows("sft.data", suite.sft.data.rows, prepare)
        _check_number(suite.sft.data, prepare, ("validation",))


def _check_rows(key: str, data: Data, prepare: Prepare) -> None:
    for source in data.sources or (data,):
        adapter = getattr(source, "adapter", None) or prepare.adapter
        files = training_files(source)
        if files and not is_user_adapter(adapter):
            _check_source(key, source, files, adapter)


def training_files(source: Source | Data) -> list[Path]:
    """Return the files of a local source's training rows."""
    if source.source in ("world", "mixed") or source.source.startswith(HUB) or ADDRESS.match(source.source):
        return []
    path = Path(source.source)
    if path.is_file():
        return [path]
    return sorted(one for one in path.glob(source.train) if one.is_file()) if source.train else []


def _check_source(key: str, source: Source, files: list[Path], adapter: str) -> None:
    adapt, reasons, num = adapter_of(adapter), Counter[str](), 0
    rows = iter_source_rows(source, SourceFiles(source.source, {path.name: path for path in files}))
    for row in islice(rows, ROWS):
        num += 1
        try:
            adapt(row)
        except Unusable as reason:
            reasons[str(reason)] += 1
        else:
            return
    if num:
        why = "; ".join(f"{count} rows: {reason}" for reason, count in reasons.most_common())
        raise UserError(
            f"{files[0]}: the adapter `{adapter}` can use none of the first {num} rows ({why}); correct "
            f"{'prepare' if key == 'data' else key}.adapter or {key}.columns"
        )


def _check_number(data: Data, prepare: Prepare, splits: tuple[str, ...]) -> None:
    """Check that a single small file has enough prompts to split; other sources are counted by `prepare`."""
    path = Path(data.source)
    plain = not data.columns and not data.replace and data.max_rows is None and not is_user_adapter(prepare.adapter)
    if splits and plain and path.is_file() and path.stat().st_size < SMALL:
        held_out_shares(prepare, splits, iter_comparisons(prepare.adapter, path), str(path))
