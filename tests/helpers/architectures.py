"""Which route each causal language model of the installed transformers takes: `python tests/helpers/architectures.py`.

Writes the table of docs/explanation/architectures.md; takes about five minutes.
"""

import signal
from pathlib import Path
from types import FrameType

import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from prefdag.errors import UserError
from prefdag.models.proof import prove
from prefdag.models.route import Route

PAGE = Path(__file__).parents[2] / "docs/explanation/architectures.md"
LIMIT = 90  # seconds
TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)
# What every published checkpoint states and the class's defaults lack.
STATED = {
    "deepseek_v2": {"num_experts_per_tok": 6, "n_routed_experts": 8},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "nemotron": {"num_key_value_heads": 8},
    **{name: {"is_decoder": True} for name in ENCODERS},
}
NAMES = {"segments": "packed", "mask": "packed, a mask", "padded": "padded"}


def row(name: str) -> tuple[str, str]:
    """Return the route of an architecture's default configuration, and why it is not a faster one."""
    try:
        config = AutoConfig.for_model(name, **STATED.get(name, {}))
    except Exception as error:
        return "not tried", f"its default configuration cannot be made: {_short(str(error))}"
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT)
    try:
        return described(prove(config, name))
    except UserError as error:
        return "refused", _short(str(error).removeprefix(f"{name}: "))
    finally:
        signal.alarm(0)


def described(route: Route) -> tuple[str, str]:
    """Return the words for a route, and the reason shortened to its first part."""
    if "cannot build" in route.reason:
        return "padded, proved on the real weights alone", _short(route.reason.split("(", 1)[1].rstrip(")"))
    logits = ", the model's logits" if route.head == "model" else ""
    reason = "" if route.kind == "segments" else _short(route.reason.split("; ")[0])
    return NAMES[route.kind] + logits, reason


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/").replace("<", "&lt;")
    return text if len(text) <= 120 else text[:117] + "..."


def _stop(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"takes more than {LIMIT} s")


def table(rows: dict[str, tuple[str, str]]) -> str:
    lines = ["| type | route | why not a faster one |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {route} | {reason} |" for name, (route, reason) in rows.items()]) + "\n"


def read_table() -> dict[str, tuple[str, str]]:
    """Return the page's rows."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: (route, reason) for name, route, reason in cells}


def write() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rows = {}
    for name in TYPES:
        rows[name] = row(name)
        print(name, *rows[name], flush=True)
    counts: dict[str, int] = {}
    for route, _ in rows.values():
        counts[route] = counts.get(route, 0) + 1
    summary = "; ".join(f"{route}: {count}" for route, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    head = PAGE.read_text().split("<!-- generated -->")[0]
    facts = f"transformers {transformers.__version__}, {len(rows)} types. {summary}."
    PAGE.write_text(f"{head}<!-- generated -->\n\n{facts}\n\n{table(rows)}")


if __name__ == "__main__":
    write()
