"""Write a suite for your own model and rows: look at the files, guess what fits them, and say what was guessed.

It asks nothing without `--ask`, and overwrites no file without `--force`. Then run `prefdag check`, and
`snakemake --configfile` on the new file.
"""

import argparse
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from prefdag.cli.guesses import Rows, Writing, data_section, guess_rows, guess_writing
from prefdag.cli.preview import Preview, preview
from prefdag.cli.size import context_of, parameters_of
from prefdag.config.adapters import ADAPTERS
from prefdag.config.data import HUB
from prefdag.config.model import is_gguf
from prefdag.config.prepare import TEMPLATES
from prefdag.config.suite import Suite, resolve
from prefdag.data.row_counts import count_rows
from prefdag.data.tokenization import load_tokenizer
from prefdag.errors import UserError

NO_CONTEXT = 4096  # tokens, where the model's config states none
ANSWER = 512  # most tokens of an answer
ROUND = 32  # limits in tokens are multiples of this
# Largest model, in parameters -> learning rate of preference training.
RATES = {2e7: 5e-4, 2e8: 2e-5, 2e9: 2e-6, math.inf: 5e-7}
METHODS = {"pairs": "dpo", "labelled": "kto"}  # of the first row, by adapter; others: dpo


@dataclass(frozen=True)
class Facts:
    """What is known of a suite before its limits are: from the model's files and the rows."""

    name: str
    model: str
    parameters: int
    context: int
    rows: Rows
    num_rows: int | None
    writing: Writing
    method: str

    @property
    def is_tuned(self) -> bool:
        """Whether the model follows instructions already, as a chat template suggests."""
        return self.writing.template == "chat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a model in the Hugging Face layout")
    parser.add_argument("--data", required=True, metavar="PATH", help="a file of rows, or a folder of such files")
    parser.add_argument("--name", help="of the suite (default: the data's)")
    parser.add_argument("--output", type=Path, metavar="PATH", help="the file to write (default: configs/<name>.yaml)")
    parser.add_argument("--ask", action="store_true", help="ask about each guess")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def run(arguments: argparse.Namespace) -> int:
    """Guess, write the suite, and print what was guessed."""
    facts = look(arguments)
    path = arguments.output or Path("configs" if Path("configs").is_dir() else ".", f"{facts.name}.yaml")
    template = path.with_suffix(".jinja") if facts.writing.jinja else None
    for file in filter(None, (path, template)):
        if file.exists() and not arguments.force:
            raise UserError(f"init: {file} exists; name another file as --output, or overwrite it with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    if template and facts.writing.jinja:
        template.write_text(facts.writing.jinja, encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory() as folder:
            seen = preview(_resolved(suite_text(facts, template, None), path), Path(folder))
            text = suite_text(facts, template, limits(facts, seen))
        _resolved(text, path)
    except UserError:
        if template:
            template.unlink()
        raise
    path.write_text(text, encoding="utf-8")
    print("\n".join(f"{key:9} {value}" for key, value in guesses(facts, template, text)))
    written = f"{path} and the template {template}" if template else str(path)
    print(f"\nwrote {written}\nnext: prefdag check {path}\n      snakemake --configfile {path}")
    return 0


def look(arguments: argparse.Namespace) -> Facts:
    """Look at the model and the rows, and ask about each guess if the user wants that."""
    folder = Path(arguments.model)
    if is_gguf(arguments.model):
        raise UserError(
            f"init --model: {arguments.model} is no model folder; start from configs/smollm2-safety.yaml and replace "
            "model and data"
        )
    if arguments.model.startswith(HUB):
        raise UserError(f"init --model: {arguments.model} is not on this machine; name the folder of a download")
    if not (folder / "config.json").is_file():
        raise UserError(f"init --model: {folder} holds no config.json; name a model folder")
    parameters, tokenizer = parameters_of(folder), load_tokenizer(folder)
    data, path = data_section(arguments.data)
    ask = _ask if arguments.ask else (lambda key, guess, allowed=(): guess)
    stem = (arguments.output or Path(arguments.data).resolve()).name.partition(".")[0]
    name = arguments.name or ask("name", re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-.") or "mine")
    rows = guess_rows(data, path)
    adapter = ask("adapter", rows.adapter, tuple(ADAPTERS))
    if adapter != rows.adapter:
        rows = guess_rows(data, path, adapter)
    _check_is_preference(rows, path)
    writing = guess_writing(tokenizer, rows.comparisons)
    if writing.jinja is None:
        template = ask("template", writing.template, TEMPLATES)
        writing = Writing(template, writing.system if template == "chat" else None, writing.bos, writing.end_of_turn)
    method = ask("method", METHODS.get(rows.adapter, "dpo"))
    return Facts(
        name=name,
        model=arguments.model,
        parameters=parameters,
        context=context_of(folder) or NO_CONTEXT,
        rows=rows,
        num_rows=count_rows(path),
        writing=writing,
        method=method,
    )


def _ask(key: str, guess: str, allowed: tuple[str, ...] = ()) -> str:
    """Ask for a value on the terminal; an empty answer, or the end of input, takes the guess."""
    while True:
        try:
            answer = input(f"{key} [{guess}]: ").strip() or guess
        except EOFError:
            return guess
        if not allowed or answer in allowed:
            return answer
        print(f"one of {', '.join(allowed)}")


def _check_is_preference(rows: Rows, path: Path) -> None:
    if rows.adapter != "labelled" and not any(len(one.responses) > 1 for one in rows.comparisons):
        raise UserError(
            f"init --data: {path}: rows of the adapter {rows.adapter} have one response each, and no label; "
            "preference training needs a better and a worse one, or labels"
        )


def limits(facts: Facts, seen: Preview) -> dict[str, int]:
    """Return token limits within the model's context, and the number of rows to train on.

    The limits keep all of the first rows, and half as much again where there are more rows.
    """
    train = seen.audit("comparisons")["splits"]["train"]
    spare = 1 if seen.is_whole else 1.5
    prompt = _round_up(spare * train["tokens"]["prompt"]["max"])
    response = _round_up(spare * max(one["max"] for name, one in train["tokens"].items() if name != "prompt"))
    if prompt + response > facts.context:
        prompt = min(prompt, 3 * facts.context // 4)
        response = facts.context - prompt
    num = facts.num_rows or seen.rows["train"]
    return {"prompt": prompt, "response": response, "rows": round(num * train["used"] / max(1, train["rows_in"]))}


def _round_up(tokens: float) -> int:
    return math.ceil(tokens / ROUND) * ROUND


def guesses(facts: Facts, template: Path | None, text: str) -> Iterator[tuple[str, str]]:
    """Yield what was guessed, and from what."""
    suite, rows = yaml.safe_load(text), facts.rows
    prepare = suite["prepare"]
    yield "model", f"{facts.parameters:,} parameters, context {facts.context} tokens"
    yield "data", f"{facts.num_rows if facts.num_rows is not None else 'many'} rows, columns {', '.join(rows.columns)}"
    usable = len(rows.comparisons)
    dropped = "".join(f"; {number} dropped: {reason}" for reason, number in rows.dropped.items())
    renamed = "".join(f", {name} is `{column}`" for name, column in suite["data"].get("columns", {}).items())
    yield (
        "adapter",
        f"{rows.adapter}: reads {usable} of the first {usable + sum(rows.dropped.values())} rows{renamed}{dropped}",
    )
    if roles := sorted({role for one in rows.comparisons if not isinstance(one.prompt, str) for role, _ in one.prompt}):
        yield "roles", ", ".join(roles)
    why = "the tokenizer's" if facts.is_tuned else "the tokenizer has no chat template"
    yield "template", f"{template or facts.writing.template} ({why})"
    system = facts.writing.system
    yield "system", "none" if system is None else f"{system!r}, which the template adds by itself"
    yield "turn end", f"{prepare['end_of_turn']}; {'one' if prepare['bos'] else 'no'} BOS before the prompt"
    yield "limits", f"{prepare['max_prompt_tokens']} tokens for prompts, {prepare['max_response_tokens']} for responses"
    yield "SFT", "none: the model follows its chat template" if facts.is_tuned else "on the better responses"


def _resolved(text: str, path: Path) -> Suite:
    suite = resolve(yaml.safe_load(text), str(path))
    assert isinstance(suite, Suite)
    return suite


def suite_text(facts: Facts, template: Path | None, found_limits: dict[str, int] | None) -> str:
    """Return the suite as commented YAML. found_limits: of `limits`; None before anything is tokenized."""
    known = found_limits or {"prompt": facts.context, "response": facts.context, "rows": facts.num_rows or 1000}
    batch = next(size for size in (32, 16, 8, 4, 2) if size <= max(2, known["rows"] // 8))
    epochs = 1 if known["rows"] >= 1000 else 3
    rate = next(rate for most, rate in RATES.items() if facts.parameters < most)
    answer = max(1, min(ANSWER, known["response"], facts.context - known["prompt"]))
    training = f"batch_size: {batch}, epochs: {epochs}, learning_rate: %s, warmup_ratio: 0.1"
    sft = f"max_steps: 0, batch_size: {batch}, learning_rate: {10 * rate:g}"
    writing, is_single = facts.writing, facts.rows.adapter == "labelled"
    lines = [
        "# Written by `prefdag init`; every line is a guess that may be changed. configs/README.md explains the keys.",
        f"name: {_quoted(facts.name)}",
        "seed: 0",
        f"threads: {min(os.cpu_count() or 1, 4)}  # of every job; part of the result, so it is stated here",
        "",
        f"model: {{source: {_quoted(facts.model)}}}",
        f"data: {_flow(facts.rows.data)}",
        "",
        "prepare:",
        f"  adapter: {facts.rows.adapter}  # how rows are read",
        f"  template: {_quoted(template.name) if template else writing.template}  # how prompts are written",
        *([f"  system: {_quoted(writing.system)}"] if writing.system is not None else []),
        f"  bos: {str(writing.bos).lower()}",
        f"  end_of_turn: {_quoted(writing.end_of_turn)}",
        "  over_long: drop  # rows over these limits, in tokens",
        f"  max_prompt_tokens: {known['prompt']}",
        f"  max_response_tokens: {known['response']}",
        "  leakage: drop  # rows whose prompt is held out",
        "  # validation_fraction and test_fraction: by default a twentieth and a tenth of the prompts",
        "",
        f"sft: {{{sft}}}  # none: the model is tuned"
        if facts.is_tuned
        else f"sft: {{{training % f'{10 * rate:g}'}}}  # on the better responses",
        *([] if is_single else [f"reward: {{{training % f'{10 * rate:g}'}}}  # the judge of answers"]),
        "reference: {}",
        f"preference: {{{training % f'{rate:g}'}}}",
        f"generate: {{max_prompts: 200, max_new_tokens: {answer}}}  # answers to at most so many test prompts",
        *(
            ["score: {reward: vader}  # sentiment: single responses train no reward model; or a `classifier` of yours"]
            if is_single
            else ["score: {reward: trained}", "report: {reward_label: trained reward model}"]
        ),
        "",
        "runs:",
        f"  - {{name: {facts.method}, method: {facts.method}, beta: 0.1}}",
        "  # - {name: dpo-strong, method: dpo, beta: 0.5, seeds: [0, 1, 2]}  # `prefdag objectives` lists the methods",
    ]
    return "\n".join(lines) + "\n"


def _flow(values: Mapping[str, object]) -> str:
    """Return a mapping of texts as one line of YAML."""
    parts = [
        f"{key}: {_flow(value) if isinstance(value, Mapping) else _quoted(str(value))}" for key, value in values.items()
    ]
    return f"{{{', '.join(parts)}}}"


def _quoted(text: str) -> str:
    """Return a text as YAML: plain where that is the same, else in double quotes."""
    plain = re.fullmatch(r"[A-Za-z./_][\w./+-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
