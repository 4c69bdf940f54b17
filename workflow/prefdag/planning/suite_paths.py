"""Check the local files that a suite names before any job runs: rows, models, tokenizers, templates, adapters."""

import ast
import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from prefdag.config.adapter_folder import adapter_mistake, base_mistake, base_of_model
from prefdag.config.adapters import adapter_files
from prefdag.config.data import HUB, Data, Source
from prefdag.config.gguf_header import gguf_mistake
from prefdag.config.model import GGUF, PYPI, Model
from prefdag.config.model_folder import Kind, mistake_of
from prefdag.config.prepare import JINJA
from prefdag.config.round_jobs import user_reward_of
from prefdag.config.suite import ExactSuite, Suite
from prefdag.config.user_paths import FORM, split_path
from prefdag.errors import UserError
from prefdag.planning.adapter_layers import adapter_mistakes
from prefdag.planning.local_files import is_local
from prefdag.planning.sampling_limits import sampling_mistakes

WEIGHTS = "adapter_model.safetensors"
REPOSITORY = re.compile(r"[\w-]+/[\w.-]+")


def check_paths(suite: Suite | ExactSuite, where: str) -> None:
    """Check every local path of a suite.

    Args:
        suite: the resolved suite.
        where: the suite's file, for errors.

    Raises:
        UserError: a sentence for each path that does not exist or holds something else, a line each.
    """
    if isinstance(suite, Suite) and (mistakes := [*_mistakes(suite)]):
        raise UserError("\n".join(f"{where}: {mistake}" for mistake in mistakes))


def _mistakes(suite: Suite) -> Iterator[str]:
    parts = {"data": suite.data, **({"sft.data": suite.sft.data} if suite.sft.data else {})}
    for part, data in parts.items():
        sources = {part: data, **{f"{part}.sources.{at}": one for at, one in enumerate(data.sources)}}
        for key, source in sources.items():
            yield from _rows(key, source)
    for name, one in suite.evaluate_reward.items():
        for mistake in _rows(f"evaluate_reward.{name}", one.rows()) if one.source else ():
            yield mistake.replace(f"evaluate_reward.{name}.train", f"evaluate_reward.{name}.file", 1)
    if not suite.model.from_scratch and not suite.model.source.startswith(PYPI):
        yield from _policy(suite.model)
    elif suite.model.tokenizer:
        yield from _missing("model.tokenizer", suite.model.tokenizer)
    if suite.classifier is not None and not suite.classifier.is_trained:
        yield from _model("classifier", suite.classifier.source, "sequence classification")
    if suite.reward is not None and suite.reward.source is not None:
        yield from _model("reward", suite.reward.source.source, "sequence classification")
    for metric in suite.score.metrics:
        yield from _function("score.metrics", *split_path(metric))
    for run in suite.runs:
        reward = getattr(run.preference, "user_reward", None)
        if reward is not None:
            yield from _function(f"runs.{run.name}.reward", *reward)
        if run.rounds and (named := user_reward_of(suite, run.name)):
            yield from _function(f"runs.{run.name}.pairs.reward", *split_path(named))
        if FORM.fullmatch(gold := suite.gold_of_rounds(run.name) or ""):
            yield from _function(f"runs.{run.name}.discriminator.gold", *split_path(gold))
    yield from adapter_mistakes(suite)
    yield from sampling_mistakes(suite)
    yield from _user_files("prepare", suite.prepare.adapter, suite.prepare.template)
    if suite.sft.data:
        yield from _user_files("sft.data", suite.sft.data.adapter, suite.sft.data.template)


def _user_files(section: str, adapter: str | None, template: str | None) -> Iterator[str]:
    """Yield a sentence for each file of an adapter or template that does not exist."""
    files = {"adapter": adapter_files(adapter) if adapter else ()}
    if template and JINJA.fullmatch(template):
        files["template"] = (Path(template),)
    for key, paths in files.items():
        for path in paths:
            if not path.is_file():
                yield f"{section}.{key}: {path} does not exist{_nearby(path)}; its path is relative to the suite's file"


def _function(key: str, path: Path, name: str) -> Iterator[str]:
    """Yield a sentence if a user's file or its function does not exist, or does not take prompts and responses."""
    if not path.is_file():
        yield f"{key}: {path} does not exist{_nearby(path)}; its path is relative to the suite's file"
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield f"{key}: {path} is not valid Python ({error})"
        return
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        yield f"{key}: {path} has no function {name}; write `def {name}(prompts, responses)`"
    elif not _takes_answers(functions[name]):
        stated = f"{path}: {name}({ast.unparse(functions[name])})"
        yield f"{key}: {stated} is called with prompts and responses; write `def {name}(prompts, responses)`"


def _takes_answers(arguments: ast.arguments) -> bool:
    """Return whether a function can be called with prompts and responses by position, in this order."""
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    if any(default is None for default in arguments.kw_defaults) or len(names) - len(arguments.defaults) > 2:
        return False
    return (len(names) >= 2 or arguments.vararg is not None) and "prompts" not in names[1:]


def _missing(key: str, source: str) -> Iterator[str]:
    """Yield a sentence if a local source does not exist."""
    path = Path(source)
    if not is_local(source) or path.exists():
        return
    hub = f"; for a repository of the Hub write `{HUB}{source}`" if REPOSITORY.fullmatch(source) else ""
    yield (
        f"{key}: {source} does not exist{_nearby(path)}{hub}; paths are relative to the folder in which Snakemake runs"
    )


def _nearby(path: Path) -> str:
    """Return a hint at a file of a similar name in the same folder."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _rows(key: str, source: Source | Data) -> Iterator[str]:
    if not is_local(source.source):
        return
    if mistakes := [*_missing(f"{key}.source", source.source)]:
        yield from mistakes
        return
    folder = Path(source.source)
    if folder.is_file():
        for split in source.named.keys() - {"train"}:
            yield f"{key}.{split}: {folder} is one file and holds train alone; name a folder for other splits"
    elif not source.named:
        yield f"{key}.train: missing; name the file (or glob) of training rows inside {folder}"
    else:
        for split, pattern in source.named.items():
            if not any(path.is_file() for path in folder.glob(pattern)):
                yield f"{key}.{split}: no file matches {pattern!r} in {folder}{_nearby(folder / pattern)}"


def _policy(model: Model) -> Iterator[str]:
    base = base_of_model(model)
    if base is None:
        yield from _model("model", model.source, "causal", model.resize)
        return
    mistakes = [*_missing("model.source", model.source), *_missing("model.base", base)]
    folders = {one: Path(one) for one in (model.source, base) if is_local(one) and not mistakes}
    files = {one: {path.name: path for path in at.iterdir()} if at.is_dir() else {} for one, at in folders.items()}
    if model.source in files and (mistake := adapter_mistake(files[model.source])):
        mistakes.append(f"model.source: {model.source}{mistake}")
    elif model.source in files and WEIGHTS not in files[model.source]:
        mistakes.append(f"model.source: {model.source} holds no {WEIGHTS}; save the adapter as safetensors")
    if base in files:
        if mistake := base_mistake(files[base], files.get(model.source, {}), model.resize):
            mistakes.append(f"model.base: {base}{mistake}")
        elif not any(folders[base].glob("*.safetensors")):
            mistakes.append(f"model.base: {base} holds no weights (*.safetensors); convert or download them")
    yield from mistakes


def _model(key: str, source: str, kind: Kind, resize: bool = False) -> Iterator[str]:
    if not is_local(source):
        return
    if mistakes := [*_missing(f"{key}.source", source)]:
        yield from mistakes
    elif (path := Path(source)).is_file():
        if not source.endswith(GGUF) or kind != "causal":
            yield f"{key}.source: {source} is a file; name the folder of a transformers model"
        elif mistake := gguf_mistake(path):
            yield f"{key}.source: {source} {mistake}"
    elif (folder := path).is_dir():
        place = f"{key}.source: {source}"
        if mistake := mistake_of({path.name: path for path in folder.iterdir()}, kind, resize):
            yield f"{place}{mistake}"
        elif not any(folder.glob("*.safetensors")):
            yield f"{place} holds no weights (*.safetensors); convert or download them"
