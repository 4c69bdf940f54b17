"""Check a suite on its first rows: what is dropped and why, two rows as the model sees them, memory and time.

The first 200 rows of every source go through the suite's own adapter, template and tokenizer. What `prepare` would
refuse is refused here, with exit code 2, before anything runs.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefdag.cli.commands import options
from prefdag.cli.plan import job_costs
from prefdag.cli.preview import Preview, preview
from prefdag.cli.size import context_of, counted, counted_demonstrations, held_out_sizes, sized, this_machine
from prefdag.config.data import SPLITS, Data
from prefdag.config.prepare import Prepare
from prefdag.config.sections.size import Size
from prefdag.config.suite import Suite, read_ordinary_suite
from prefdag.data.audit import findings, label_name
from prefdag.data.dropped import warnings
from prefdag.data.preflight import check_subsets
from prefdag.data.preprocess import UNDESIRABLE
from prefdag.data.row_counts import count_rows
from prefdag.data.token_store import Store
from prefdag.data.tokenization import load_tokenizer
from prefdag.data.views import Mismatched, Unpaired, objective_view
from prefdag.errors import UserError
from prefdag.planning.adapter_layers import adapter_doubts
from prefdag.planning.graph import jobs_of
from prefdag.planning.machine import bf16_warning
from prefdag.planning.suite_files import check_suite_files
from prefdag.planning.suite_paths import check_paths

SHOWN = 2  # rows
HEAD, TAIL = 40, 12  # tokens of a long prompt or response that are shown
SECONDS_PER_JOB = 3.0  # to start Python and import its libraries
WARNING = "warning: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")


def run(arguments: argparse.Namespace) -> int:
    """Print what the first rows come to."""
    suite = read_ordinary_suite(arguments.suite)
    check_suite_files(Path("results") / suite.name, arguments.suite)
    check_paths(suite, arguments.suite[-1])
    check_subsets(suite)
    for line in report_of(suite):
        print(line)
    print(f"\nNothing was refused. Run it: snakemake --configfile {' '.join(arguments.suite)}")
    return 0


def report_of(suite: Suite) -> Iterator[str]:
    """Yield the lines to print. Raises `UserError` for what a stage would refuse."""
    if warning := bf16_warning(suite, os.environ):
        yield f"precision: {warning}"
    yield from (f"{WARNING}{doubt}" for doubt in adapter_doubts(suite))
    with tempfile.TemporaryDirectory() as folder:
        seen = preview(suite, Path(folder))
        total = seen.rows if seen.is_whole else _totals(suite.data, seen.folder / "fetch/data", seen.rows)
        yield from _data(suite, seen, total)
        _check_losses(suite, seen)
        for dataset in seen.datasets:
            yield from _dropped(dataset, seen.audit(dataset))
        yield from _splits(suite, seen, total)
        yield from _lengths(suite, seen)
        yield from _shown(suite, seen)
        yield from _costs(suite, seen, total)


def _data(suite: Suite, seen: Preview, total: dict[str, int]) -> Iterator[str]:
    yield f"{suite.name}: rows read: {_counts(seen.rows, total)}"
    # Where SFT has rows of its own, those of the suite are described by the datasets made of them.
    datasets = [name for name in seen.datasets if name != "demonstrations" or suite.sft.data is None]
    yield _written(suite.prepare.model_copy(update=seen.audit(datasets[0]).get("settled", {}) if datasets else {}))
    if suite.sft.data is not None:
        rows = _counts(seen.sft_rows, _totals(suite.sft.data, seen.folder / "fetch/sft_data", seen.sft_rows))
        settled = seen.audit("demonstrations").get("settled", {})
        prepare = suite.sft.prepare(suite.prepare, "demonstrations").model_copy(update=settled)
        yield f"sft.data: rows read: {rows}; {_written(prepare)}"
    if suite.pairs is not None:
        yield "comparisons: sampled from the SFT policy; only its demonstrations can be checked before that"


def _counts(rows: dict[str, int], total: dict[str, int]) -> str:
    known = {split: f" of {total[split]:,}" if split in total else "" for split in rows}
    return ", ".join(f"{split} {number}{known[split]}" for split, number in rows.items())


def _written(prepare: Prepare) -> str:
    """Say how rows are read and written."""
    system = "no system prompt" if prepare.system is None else f"system prompt {prepare.system[:60]!r}"
    return f"adapter {prepare.adapter}, template {prepare.template}, {system}, end of turn {prepare.end_of_turn}"


def _totals(data: Data, folder: Path, rows: dict[str, int]) -> dict[str, int]:
    """Return the rows of each split, where its files can be counted quickly."""
    files = json.loads((folder / "manifest.json").read_text())["facts"].get("sources", [])
    sources = data.sources or (data,)
    totals: dict[str, int] = {}
    for split in rows:
        counts = []
        for source, stated in zip(sources, files):
            for name in stated.get(split, {}).get("files", {}):
                path = Path(source.source)
                number = count_rows(path if path.is_file() else path / name)
                counts.append(min(number, source.max_rows or number) if number is not None else None)
        known = [number for number in counts if number is not None]
        if counts and len(known) == len(counts):
            totals[split] = sum(known)
    return totals


def _dropped(dataset: str, audit: dict[str, Any]) -> Iterator[str]:
    """Say what is dropped, cut, repeated or suspicious."""
    for split, part in audit["splits"].items():
        for line in findings(split, part) if part["rows_in"] else ():
            yield f"{dataset}: {line}"
    for sentence in warnings(audit["splits"], (UNDESIRABLE,)):
        yield f"{WARNING}{dataset}: {sentence}"


def _splits(suite: Suite, seen: Preview, total: dict[str, int]) -> Iterator[str]:
    dataset = "comparisons" if "comparisons" in seen.datasets else "demonstrations"
    if dataset == "demonstrations" and suite.sft.data is not None:
        return  # prompts of the suite are held out where pairs are sampled
    parts = seen.audit(dataset)["splits"]
    if seen.is_whole:
        used = {split: parts[split]["used"] for split in SPLITS if split in parts}
        yield f"splits: {', '.join(f'{split} {used[split]}' for split in used)} rows"
    elif "train" in total and (num := _usable(parts["train"], total["train"])):
        held_out = held_out_sizes(suite, num, seen.rows)
        others = {split: _usable(parts[split], total[split]) for split in parts if split != "train" and split in total}
        numbers = {"train": num - sum(held_out.values()), **held_out, **others}
        yield f"splits: about {', '.join(f'{split} {number:,}' for split, number in numbers.items())} rows"


def _usable(part: dict[str, Any], total: int) -> int:
    return round(total * part["used"] / part["rows_in"]) if part["rows_in"] else 0


def _lengths(suite: Suite, seen: Preview) -> Iterator[str]:
    """Say how long prompts and responses are, and whether answers fit the model."""
    longest = 0
    for dataset in _described(suite, seen):
        tokens = seen.audit(dataset)["splits"].get("train", {}).get("tokens", {})
        names = [name for name in ("prompt", "chosen", *tokens) if name in tokens]
        parts = [
            f"{name} median {tokens[name]['median']}, longest {tokens[name]['max']}" for name in dict.fromkeys(names)
        ]
        longest = tokens["prompt"]["max"] if tokens else 0
        limits = f"{suite.prepare.max_prompt_tokens} and {suite.prepare.max_response_tokens}"
        of_sft = " of sft.data" if dataset == "demonstrations" and suite.sft.data else ""
        yield f"tokens{of_sft}: {'; '.join(parts)}; limits {limits}"
    context = context_of(seen.tokenizer) if (seen.tokenizer / "config.json").is_file() else None
    if suite.model.scratch is not None and suite.model.from_scratch:
        context = suite.model.scratch.context
    reach = longest + suite.generate.max_new_tokens
    if context is not None and reach > context:
        yield (
            f"{WARNING}a prompt of {longest} tokens and generate.max_new_tokens {suite.generate.max_new_tokens} are "
            f"beyond the model's context of {context} tokens; lower one of them"
        )


def _described(suite: Suite, seen: Preview) -> list[str]:
    """Return the datasets to show: the last one, after the demonstrations if they are made of other rows."""
    datasets = [name for name in seen.datasets if name == "demonstrations" and suite.sft.data]
    return [*datasets, *(name for name in seen.datasets[-1:] if name not in datasets)]


def _check_losses(suite: Suite, seen: Preview) -> None:
    """Raise `UserError` if the comparisons lack what a loss reads."""
    for run in suite.runs:
        if run.dataset in seen.datasets:
            view = objective_view(Store.open(seen.folder / f"prepare/{run.dataset}/train"), run.objective)
            if "mismatched" in run.objective.reads and isinstance(view, Unpaired) and seen.is_whole:
                _ = Mismatched(view, run.preference.seed).partner


def _shown(suite: Suite, seen: Preview) -> Iterator[str]:
    """Show the first rows, token by token."""
    tokenizer = load_tokenizer(seen.tokenizer)
    for dataset in _described(suite, seen):
        store = Store.open(seen.folder / f"prepare/{dataset}/train")
        names = ["chosen", "rejected"] if store.num_responses == 2 else ["response"] * store.num_responses
        yield f"\n{dataset} as the model sees them, `\u00b7` between tokens; the loss counts the tokens of responses:"
        for index in range(min(SHOWN, len(store))):
            one = store[index]
            yield f"  row {store.rows[index] + 1}"
            if store.num_responses == 1 and store.scores is not None:
                names = [label_name(float(store.scores[index, 0]))]
            for name, ids in zip(["prompt", *names], [one.prompt, *one.responses]):
                yield f"    {name:8} {len(ids):5} tokens  {_tokens(tokenizer, ids.tolist())}"


def _tokens(tokenizer: Any, ids: list[int]) -> str:
    left_out = len(ids) - HEAD - TAIL
    texts = [_token(tokenizer, one) for one in ids]
    if left_out > 0:
        texts = [*texts[:HEAD], f" ... {left_out} tokens ... ", *texts[-TAIL:]]
    return "\u00b7".join(texts)


def _token(tokenizer: Any, one: int) -> str:
    """Return a token as text; one of SentencePiece with its `\u2581`, for which decoding gives a space or nothing."""
    piece = str(tokenizer.convert_ids_to_tokens(one))
    text = piece if piece.startswith("\u2581") else str(tokenizer.decode([one]) or piece)
    return text.replace("\n", "\u21b5")


def _costs(suite: Suite, seen: Preview, total: dict[str, int]) -> Iterator[str]:
    """Estimate time, memory and disk."""
    try:
        size, _ = sized(suite, Path("results") / suite.name)
    except UserError as mistake:  # nothing of the model is on this machine yet
        yield f"\ntime and memory: unknown ({mistake})"
        return
    if suite.pairs is None and (counts := counted(seen.audit("comparisons")["splits"]["train"])):
        if not seen.is_whole:
            part = seen.audit("comparisons")["splits"]["train"]
            num = _usable(part, total["train"]) if "train" in total else size.comparisons
            held_out = held_out_sizes(suite, num, seen.rows) if "train" in total else {}
            counts["comparisons"] = max(1, num - sum(held_out.values()))
        size = Size(**{**size.model_dump(), **counts})
    if suite.sft.data is not None:
        part = seen.audit("demonstrations")["splits"]["train"]
        totals = _totals(suite.sft.data, seen.folder / "fetch/sft_data", seen.sft_rows)
        counts = counted_demonstrations(part)
        counts["demonstrations"] = max(1, _usable(part, totals.get("train", part["rows_in"])))
        size = Size(**{**size.model_dump(), **counts})
    machine = this_machine(suite.threads)
    costs = list(job_costs(suite, size, machine))
    hours = sum(one.hours for one in costs)
    most = max(costs, key=lambda one: one.gigabytes)
    starting = SECONDS_PER_JOB * len(jobs_of(suite)) / 3600
    yield (
        f"\nestimated: {size.parameters:.3g} parameters, {size.comparisons:,} comparisons; about "
        f"{_duration(hours + starting)} of work on {machine.name}, memory up to {most.gigabytes:.2f} GB ({most.stage})"
    )
    if most.gigabytes > (available := _memory()):
        yield (
            f"{WARNING}{most.stage} needs {most.gigabytes:.1f} GB of memory, this machine has {available:.1f} GB; "
            "lower tokens_per_batch, state activation_gb, or take a smaller model"
        )


def _memory() -> float:
    """Return the GB of the GPU's memory, or of the machine's."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[1] / 1e9)
    return float(psutil.virtual_memory().total / 1e9)


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
