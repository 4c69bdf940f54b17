"""Check the first rows of local files while a run is planned: what `prepare` would refuse in all of them."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from prefdag.config.adapters import is_user_adapter
from prefdag.config.data import ADDRESS, HUB, Data, Source
from prefdag.config.prepare import Prepare
from prefdag.config.sections.evaluate_reward import RewardSet
from prefdag.config.suite import ExactSuite, Suite
from prefdag.data.adapters.records import Unusable
from prefdag.data.adapters.registry import adapter_of, iter_comparisons
from prefdag.data.mixture import iter_source_rows
from prefdag.data.rows import Row
from prefdag.data.sources.resolve import SourceFiles
from prefdag.data.splits import held_out_shares
from prefdag.data.subset_labels import check_sections, labels_of
from prefdag.errors import Mistakes, UserError

ROWS = 20  # read of each source
SUBSET_ROWS = 20_000  # read at most to find the subsets that `sections` names
SMALL = 1 << 16  # bytes; so small a file is read as a whole


def check_new_rows(suite: Suite | ExactSuite, outdated: Collection[str]) -> None:
    """Check the local rows that jobs are going to read. outdated: the folders of these jobs."""
    if {"fetch/data", "fetch/sft_data"} & {*outdated}:
        check_first_rows(suite)
    if any(folder.startswith("evaluate_reward/") for folder in outdated):
        check_subsets(suite)


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
    return _local_files(source, source.train)


def _local_files(source: Source | Data, pattern: str | None) -> list[Path]:
    """Return a local source's files that a pattern names; a single file is itself all that there is."""
    if source.source in ("world", "mixed") or source.source.startswith(HUB) or ADDRESS.match(source.source):
        return []
    path = Path(source.source)
    if path.is_file():
        return [path]
    return sorted(one for one in path.glob(pattern) if one.is_file()) if pattern else []


def _check_source(key: str, source: Source, files: list[Path], adapter: str) -> None:
    adapt, reasons, num = adapter_of(adapter), Counter[str](), 0
    for row in islice(_iter_rows(source, files), ROWS):
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


def _iter_rows(source: Source, files: list[Path]) -> Iterator[Row]:
    return iter_source_rows(source, SourceFiles(source.source, {path.name: path for path in files}))


def check_subsets(suite: Suite | ExactSuite) -> None:
    """Check that local rows have the columns of `evaluate_reward.<set>.subset`, and some row each subset of `sections`.

    Raises:
        UserError: none of the first rows of a source has a column, or no row has a subset, a line for each set.
    """
    if isinstance(suite, ExactSuite):
        return
    mistakes = Mistakes()
    for name, one in suite.evaluate_reward.items():
        if one.subset and (one.source is not None or suite.pairs is None):
            mistakes.attempt(_check_set, suite, f"evaluate_reward.{name}", one)
    mistakes.check()


def _check_set(suite: Suite, key: str, one: RewardSet) -> None:
    data = suite.data if one.source is None else one.rows()
    sources = data.sources or (data,)
    adapter = suite.prepare.adapter if one.source is None else one.adapter
    # The suite's test split; without a file for it, rows are held out of train.
    has_test = one.source is None and any(source.test for source in sources)
    files = [_local_files(source, source.test if has_test else source.train) for source in sources]
    for source, paths in zip(sources, files, strict=True):
        if paths:
            _check_columns(f"{key}.subset: {paths[0]}", source, paths, one.subset, adapter)
    if one.sections and all(files):
        rows = (row for source, paths in zip(sources, files, strict=True) for row in _iter_rows(source, paths))
        _check_sections(key, one, rows)


def _check_columns(where: str, source: Source, files: list[Path], columns: tuple[str, ...], adapter: str) -> None:
    """Raise `UserError` if `evaluate_reward` would refuse all of the first rows that the adapter can use."""
    adapt = None if is_user_adapter(adapter) else adapter_of(getattr(source, "adapter", None) or adapter)
    first: UserError | None = None
    for number, row in enumerate(islice(_iter_rows(source, files), ROWS), 1):
        try:
            if adapt:
                adapt(row)
            labels_of(row, columns, f"{where}: row {number}")
        except Unusable:
            continue
        except UserError as mistake:
            first = first or mistake
        else:
            return
    if first:
        raise first


def _check_sections(key: str, one: RewardSet, rows: Iterator[Row]) -> None:
    """Read rows until each subset of the sections was seen. Raises `UserError` if one is in no row of all."""
    absent, seen = {name for subsets in one.sections.values() for name in subsets}, dict[str, None]()
    for number, row in enumerate(rows):
        if not absent or number == SUBSET_ROWS:
            return
        with contextlib.suppress(UserError):  # what such a row lacks is no matter if it is not used
            labels = labels_of(row, one.subset, key)
            seen |= dict.fromkeys(labels)
            absent -= {*labels}
    check_sections(one.sections, [[name] for name in seen], key)


def _check_number(data: Data, prepare: Prepare, splits: tuple[str, ...]) -> None:
    """Check that a single small file has enough prompts to split; other sources are counted by `prepare`."""
    path = Path(data.source)
    plain = not data.columns and not data.replace and data.max_rows is None and not is_user_adapter(prepare.adapter)
    if splits and plain and path.is_file() and path.stat().st_size < SMALL:
        held_out_shares(prepare, splits, iter_comparisons(prepare.adapter, path), str(path))
