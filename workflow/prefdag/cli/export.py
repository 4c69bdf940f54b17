"""Copy a policy to a folder that `from_pretrained` loads, with a model card.

The card is made from the manifests. Nothing is uploaded to the Hub unless `--push` names a repository.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from prefdag.cli.commands import options
from prefdag.config.answer_sets import weights_of
from prefdag.config.online.methods import row_objective
from prefdag.errors import UserError
from prefdag.evaluation.trained import training_of
from prefdag.provenance.journal import redact
from prefdag.provenance.manifest import MANIFEST, Manifest, read_manifest, sha256_of, weights_digest

DTYPES = ("float32", "bfloat16", "float16")
ALIGNING = ("preference", "policy", "online")  # stages with a folder for each run
MEASURES = ("reward", "trained", "kl", "length", "distinct2", "repetition")


def manifest_of(run: str, results: Path | None) -> Manifest:
    """Find the manifest of a policy: a run or one of its rounds, `sft`, or the run of a checkpoint `<run>@step<N>`.

    Raises `UserError` if no suite, or more than one, has the policy.
    """
    folders = [results] if results else sorted(path.parent for path in Path("results").glob("*/fetch"))
    trainings = [training_of(folder, run)[0] / MANIFEST for folder in folders]
    paths = [path for path in trainings if path.is_file()]
    if len(paths) == 1:
        return read_manifest(paths[0])
    searched = ", ".join(map(str, folders)) or "results/<suite>"
    if paths:
        raise UserError(f"{run}: several suites have this policy ({searched}); choose one with --results")
    known = sorted({path.parent.name for folder in folders for path in folder.glob(f"preference/*/{MANIFEST}")})
    policies = ", ".join(["sft", *known])
    raise UserError(f"{run}: no finished policy of that name in {searched}; its policies are {policies}")


def export(manifest: Manifest, run: str, target: Path, dtype: str | None = None) -> Path:
    """Copy the weights of a policy to the new folder `target`, checked against the manifest, with a model card.

    The folder appears complete or not at all. `dtype` rounds the weights; default: as trained, in float32. Raises
    `UserError` if the folder exists, or if a file is not the manifest's.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already; name a new folder")
    weights = weights_of(manifest.path, training_of(suite_folder(manifest), run)[1])
    inside = weights.relative_to(manifest.folder).as_posix()
    names = [name for name in manifest.content["files"] if name.startswith(f"{inside}/")]
    if not names:
        raise UserError(
            f"{manifest.path}: lists no weights in {inside}; `preference.checkpoints` sets how many a run saves"
        )
    made = target.with_name(f".{target.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name in names:
        copy = shutil.copyfile(manifest.file(name), made / Path(name).name)
        if sha256_of(copy) != manifest.digest(name):
            raise UserError(f"{manifest.folder / name}: not the file that its manifest states; rerun its stage")
    if dtype:
        _cast(made, dtype)
    (made / "README.md").write_text(card(manifest, run, inside, dtype), encoding="utf-8")
    content = json.dumps(redact(manifest.content), sort_keys=True, indent=1) + "\n"
    (made / "prefdag.json").write_text(content, encoding="utf-8")
    target.mkdir(parents=True, exist_ok=True)
    os.replace(made, target)
    return target


def _cast(folder: Path, dtype: str) -> None:
    """Convert the floating-point weights of a model folder, and state the type in its config."""
    import torch
    from safetensors.torch import load_file, save_file

    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(path).items()
        }
        size += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["metadata"]["total_size"] = size
        index.write_text(json.dumps(content, indent=2) + "\n")


def card(manifest: Manifest, run: str, weights: str = "model", dtype: str | None = None) -> str:
    """Return the model card in Markdown, from the manifests of the policy and of its ancestors, and from its scores."""
    suite = suite_folder(manifest)
    config = manifest.content["config"]
    aligned = manifest.content["stage"] in ALIGNING
    loss = row_objective(config["objective"], str(manifest.path), "config.objective") if aligned else None
    ancestry = list(lineage(manifest, suite))
    origins = [one.content["config"] for one in ancestry if one.content["stage"] == "fetch"]
    return _template().render(
        front=yaml.safe_dump(_front(run, loss.method if loss else None, origins), sort_keys=False),
        name=run,
        title=f"Aligned by {loss.title}" if loss else f"Made by the stage `{manifest.content['stage']}`",
        paper=loss.paper if loss else "",
        suite=suite.resolve().name,
        lineage=[{"name": one.folder.relative_to(suite).as_posix(), "sha256": one.sha256} for one in ancestry],
        origins="\n".join(map(_origin, origins)),
        weights=weights_digest(manifest, weights),
        dtype=dtype,
        config=json.dumps(redact(config), indent=1, sort_keys=True),
        **_measured(suite, run),
    )


def lineage(manifest: Manifest, suite: Path) -> Iterator[Manifest]:
    """Yield the manifest and its ancestors in the suite, each once, nearest first."""
    known = {one.sha256: one for one in map(read_manifest, sorted(suite.glob("**/" + MANIFEST)))}
    waiting, seen = [manifest.sha256], set()
    while waiting:
        digest = waiting.pop(0)
        if digest in seen or digest not in known:
            continue
        seen.add(digest)
        yield known[digest]
        for value in known[digest].content["inputs"].values():
            waiting += value if isinstance(value, list) else [value]


def push(folder: Path, repository: str, public: bool) -> str:
    """Upload an exported folder to the Hub, private unless `public`, and return its address.

    Raises `UserError` if the name is not valid, the Hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().create_repo(repository, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message=f"prefdag export {folder.name}")
    except HFValidationError:
        raise UserError(f"--push {repository}: not a repository's name; write owner/name") from None
    except HfHubHTTPError as error:
        reason = f"the Hub refuses (HTTP {error.response.status_code}); set HF_TOKEN to a token that may write"
        raise UserError(f"--push {repository}: {reason}") from None
    except Exception as error:
        reason = f"the Hub cannot be reached ({type(error).__name__})"
        raise UserError(f"--push {repository}: {reason}; {folder} is complete, push it later") from None
    return f"{HfApi().endpoint}/{repository}"


def suite_folder(manifest: Manifest) -> Path:
    """Return results/<suite> of a policy's manifest."""
    return manifest.folder.parents[1 if manifest.content["stage"] in ALIGNING else 0]


def _front(run: str, method: str | None, origins: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metadata that the Hub reads at the head of the card."""
    hub = "hub:"
    models = [config["model"]["source"] for config in origins if config.get("model")]
    data = [config["data"]["source"] for config in origins if config.get("data")]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= {"tags": ["prefdag", *([method] if method else [])]}
    for key, sources in (("base_model", models), ("datasets", data)):
        named = [source.removeprefix(hub) for source in sources if isinstance(source, str) and source.startswith(hub)]
        front |= {key: named if key == "datasets" else named[0]} if named else {}
    return front


def _origin(config: Mapping[str, Any]) -> str:
    """Describe what a `fetch` job fetched, with the commits of its lock."""
    lines = []
    for kind in ("data", "model", "tokenizer"):
        if config.get(kind):
            source = config[kind].get("source")
            lines.append(f"- {kind}: `{source if isinstance(source, str) else json.dumps(redact(source))}`")
    lock = config.get("lock") or {}
    return "\n".join([*lines, *(f"  - `{name}` at commit `{entry['commit']}`" for name, entry in _commits(lock))])


def _commits(lock: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in lock.items():
        if isinstance(entry, Mapping) and "commit" in entry:
            yield name, entry
        elif isinstance(entry, Mapping):
            yield from _commits(entry)


def _measured(suite: Path, run: str) -> dict[str, Any]:
    """Return the rows of the card's table, from the scores of the policy's answers."""
    path = suite / "score" / run / "summary.json"
    if not path.is_file():
        return {"scores": [], "num_prompts": 0}
    summary = json.loads(path.read_text())
    rows = [{"name": name, **summary[name]} for name in MEASURES if name in summary]
    return {"scores": rows, "num_prompts": summary["reward"]["n"]}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.jinja")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's name, <run>@round<N> or <run>@step<N> for a checkpoint, or sft")
    options(parser, "--results")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder (default: exports/<suite>/<run>)")
    parser.add_argument("--dtype", choices=DTYPES, help="round the weights (default: float32, as trained)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="make a new repository public")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and upload it to the Hub only if `--push` names a repository."""
    if arguments.public and not arguments.push:
        raise UserError("--public: has no effect without --push OWNER/NAME; add it")
    manifest = manifest_of(arguments.run, arguments.results)
    suite = suite_folder(manifest).resolve().name
    target = export(manifest, arguments.run, arguments.to or Path("exports") / suite / arguments.run, arguments.dtype)
    print(f"{target}: load it with AutoModelForCausalLM.from_pretrained({str(target)!r})")
    if arguments.push:
        print(f"pushed to {push(target, arguments.push, arguments.public)}")
    return 0
