"""The size of a suite's model and data as their files state it, for estimates of time, memory and disk."""

import json
import math
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdag.config.adapter_folder import base_of_model
from prefdag.config.data import HUB
from prefdag.config.gguf_header import read_header
from prefdag.config.model import GGUF, PYPI, Architectural
from prefdag.config.model_folder import positions_of
from prefdag.config.sections.pretrain import Pretrain
from prefdag.config.sections.size import Size
from prefdag.config.suite import Suite
from prefdag.data.preflight import training_files
from prefdag.data.row_counts import count_rows
from prefdag.data.splits import default_sizes
from prefdag.errors import UserError
from prefdag.provenance.manifest import checked

ASSUMED = {"comparisons": 1000, "prompt_tokens": 100, "response_tokens": 200}  # where nothing is prepared or stated


@dataclass(frozen=True)
class Machine:
    """What jobs run on. flops: arithmetic a second; bandwidth: bytes of weights read a second; name: for people."""

    flops: float
    bandwidth: float
    name: str


H100 = Machine(0.4 * 989e12, 0.6 * 3.35e12, "one H100 at 40 % of its bf16 peak")


def this_machine(threads: int) -> Machine:
    """Return the H100 of the estimates if there is a GPU, else the CPU's measured speed, in a quarter of a second."""
    import torch

    if torch.cuda.is_available():
        return H100
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    matrix = torch.randn(768, 768)
    seconds = min(_seconds(lambda: matrix @ matrix) for _ in range(5))
    block = torch.zeros(1 << 24)  # 64 MiB
    copying = min(_seconds(block.clone) for _ in range(3))
    torch.set_num_threads(before)
    name = f"this CPU ({threads} thread{'s' * (threads > 1)})"
    return Machine(0.5 * 2 * 768**3 / seconds, 0.5 * 2 * block.nbytes / copying, name)


def _seconds(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def sized(suite: Suite, results: Path) -> tuple[Size, str]:
    """Return the suite's size, and where its tokens were counted.

    The model's size is that of a local folder, whatever `size` states (a suite that it extends may have another model),
    else of `size`, of what was fetched, or of the shape to build.
    Tokens are those that the audit counted, those of `size`, or a guess; so are comparisons, which are counted in local
    files where that is quick.

    Raises:
        UserError: the model is on the Hub, was not fetched yet, and the suite has no `size`; or rows cannot be read.
    """
    stated = suite.size.model_dump() if suite.size else {}
    is_local = (_whole_model(suite) / "config.json").is_file()
    values = {**(stated or ASSUMED), **(_model_size(suite, results) if is_local or not stated else {})}
    audit = results / "prepare/comparisons/audit.json"
    of_sft = results / "prepare/demonstrations/audit.json"
    if suite.sft.data is not None and of_sft.is_file():
        values |= counted_demonstrations(json.loads(checked(of_sft).read_text())["splits"]["train"])
    if audit.is_file() and (counts := counted(json.loads(checked(audit).read_text())["splits"]["train"])):
        return Size(**{**values, **counts}), "counted by the audit"
    if suite.size:
        return Size(**values), "as the suite states"
    if rows := _local_training_rows(suite):
        return Size(**{**values, "comparisons": rows}), "rows counted, tokens assumed; `prefdag check` counts both"
    return Size(**values), "number and tokens assumed; `prefdag check` counts both"


def _local_training_rows(suite: Suite) -> int | None:
    """Return the rows of the suite's local files less those to hold out; None where they cannot be counted quickly."""
    data = suite.data
    numbers = [count_rows(path) for path in training_files(data)]
    if suite.pairs is not None or data.sources or not numbers or None in numbers:
        return None
    rows = sum(number for number in numbers if number is not None)
    rows = min(rows, data.max_rows or rows)
    return max(1, rows - sum(held_out_sizes(suite, rows, ("train", *data.named)).values()))


def held_out_sizes(suite: Suite, rows: int, splits: Collection[str]) -> dict[str, int]:
    """Return about how many of the training rows are held out, by split.

    Args:
        suite: its section `prepare` may state the shares.
        rows: the training rows.
        splits: the splits that have rows of their own.
    """
    stated = {"validation": suite.prepare.validation_fraction, "test": suite.prepare.test_fraction}
    derived = default_sizes(rows, [split for split in stated if split not in splits])
    sizes = {
        split: size if (share := stated[split]) is None else round(rows * share) for split, size in derived.items()
    }
    return {split: size for split, size in sizes.items() if size}


def blocks_of(suite: Suite, pretrain: Pretrain, size: Size, prompts: int) -> tuple[int, int]:
    """Return the blocks of an epoch of pre-training, and their tokens: of a step count, full ones.

    A document is a prompt with its best response, between two tokens. What is beyond `max_tokens` continues in further
    blocks.
    """
    if pretrain.max_steps:
        return pretrain.max_steps * pretrain.batch_size, pretrain.max_tokens
    documents = suite.data.world.reviews if suite.data.world else prompts
    length = size.prompt_tokens + size.response_tokens + 2
    num = math.ceil((length - 1) / max(1, pretrain.max_tokens - 1))
    return documents * num, math.ceil(length / num)


def counted(train: dict[str, Any]) -> dict[str, int]:
    """Return the comparisons of an audit's split and the mean tokens of prompt and response; {} if it has none."""
    used, tokens = train["used"], train["tokens"]
    if not used:
        return {}
    parts = [one["total"] for name, one in tokens.items() if name != "prompt"]
    means = {"prompt_tokens": tokens["prompt"]["total"] / used, "response_tokens": sum(parts) / len(parts) / used}
    return {"comparisons": used, **{name: max(1, round(mean)) for name, mean in means.items()}}


def counted_demonstrations(train: dict[str, Any]) -> dict[str, int]:
    """Return the demonstrations of an audit's split and their mean tokens; {} if it has none."""
    if not (counts := counted(train)):
        return {}
    tokens = counts["prompt_tokens"] + counts["response_tokens"]
    return {"demonstrations": counts["comparisons"], "demonstration_tokens": tokens}


def _whole_model(suite: Suite) -> Path:
    """Return the folder of the model, or of its base, if it is a local one."""
    return Path(base_of_model(suite.model) or suite.model.source)


def _model_size(suite: Suite, results: Path) -> dict[str, Any]:
    if suite.model.source.endswith(GGUF):
        header = read_header(Path(suite.model.source))
        sizes = {"layers": header.size("block_count"), "hidden_size": header.size("embedding_length")}
        return {"parameters": header.parameters, **sizes}
    for folder in (_whole_model(suite), results / "fetch/model/model", results / "pretrain/model"):
        if (folder / "config.json").is_file():
            return {"parameters": parameters_of(folder), **shape_of(folder)}
    if suite.model.from_scratch:
        assert suite.model.scratch is not None
        shape = suite.model.scratch
        return {"parameters": _to_build(shape), "layers": shape.layers, "hidden_size": shape.hidden_size}
    if (base_of_model(suite.model) or suite.model.source).startswith((HUB, PYPI)):
        raise UserError(
            f"{suite.name}: size is missing: run `snakemake --until fetch` first, or state parameters, layers, "
            "hidden_size, comparisons and tokens"
        )
    raise UserError(f"model.source: {suite.model.source} holds no config.json; name a model folder")


def model_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model. Raises `UserError` if it is not JSON."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: not valid JSON ({error}); download it again") from None
    return config


def shape_of(folder: Path) -> dict[str, int]:
    """Return the layers and the hidden size that a model's config states."""
    config = model_config(folder)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    hidden = config.get("hidden_size", config.get("n_embd"))
    if not layers or not hidden:
        raise UserError(f"{folder / 'config.json'}: states no number of layers or hidden size; state `size`")
    return {"layers": int(layers), "hidden_size": int(hidden)}


def context_of(folder: Path) -> int | None:
    """Return the positions that a model was made for, if its config states them."""
    return positions_of(model_config(folder))


def parameters_of(folder: Path) -> int:
    """Count the parameters in a model's weights, from the headers of their files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no weights (*.safetensors); convert or download them")
    return sum(math.prod(entry["shape"]) for path in files for entry in _header(path))


def _header(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            entries = json.loads(stream.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError):
        raise UserError(f"{path}: not a readable safetensors file; download it again") from None
    return (entry for name, entry in entries.items() if name != "__metadata__")


def _to_build(shape: Architectural) -> int:
    """Count the parameters of a model that the suite builds, without memory for them."""
    import torch

    from prefdag.models.loading import build

    with torch.device("meta"):
        return sum(one.numel() for one in build(shape, shape.vocab_size, 0, 0, seed=0).parameters())
