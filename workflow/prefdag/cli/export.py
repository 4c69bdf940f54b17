"""Copy a policy or a reward model to a folder that `from_pretrained` loads, with a model card.

The card is made from the manifests. Nothing is uploaded to the Hub unless `--push` names a repository.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from prefdag.cli.commands import options
from prefdag.cli.exporting.adapter import is_adapter, name_base, write_merged
from prefdag.cli.exporting.exported_files import SIZE, write_configs, write_weights
from prefdag.cli.exporting.model_card import Export, card, generation_of, lineage, suite_folder
from prefdag.cli.exporting.prompt_format import PromptFormat, write_tokenizer
from prefdag.config.answer_sets import weights_of
from prefdag.errors import UserError
from prefdag.evaluation.trained import training_of
from prefdag.provenance.manifest import MANIFEST, Manifest, read_manifest, read_training, sha256_of
from prefdag.provenance.redaction import redact

DTYPES = ("float32", "bfloat16", "float16")
REWARD, SCORING = "reward", "scoring.json"
SHARD = "5GB"


def manifest_of(run: str, results: Path | None) -> Manifest:
    """Find the manifest of a policy: a run or one of its rounds, `sft`, or the run of a checkpoint `<run>@step<N>`.

    Raises `UserError` if no suite, or more than one, has the policy.
    """
    folders = [results] if results else sorted(path.parent for path in Path("results").glob("*/fetch"))
    trainings = {folder: training_of(folder, run)[0] / MANIFEST for folder in folders}
    paths = [path for path in trainings.values() if path.is_file()]
    if len(paths) == 1:
        return read_training(paths[0])
    if run == REWARD and not paths:
        paths = [path for path in (folder / REWARD / MANIFEST for folder in folders) if path.is_file()]
        if len(paths) == 1:
            if (paths[0].parent / "source.json").is_file():
                raise UserError("reward: this suite's reward model was fetched, not trained; take it from its source")
            return read_training(paths[0])
    searched = ", ".join(map(str, folders)) or "results/<suite>"
    if paths:
        having = ", ".join(str(folder) for folder, path in trainings.items() if path.is_file()) or searched
        raise UserError(f"{run}: several suites have this policy ({having}); choose one with --results")
    known = [f"{folder} has {', '.join(_policies_of(folder)) or 'none'}" for folder in folders]
    raise UserError(f"{run}: no finished policy of that name; {'; '.join(known) or f'{searched} does not exist'}")


def _policies_of(results: Path) -> list[str]:
    """Return the names of a suite's finished policies."""
    stages = ("selected", "policy", "online", "preference")
    rows = {path.parent.name for stage in stages for path in results.glob(f"{stage}/*/{MANIFEST}")}
    return [one for one in ("sft",) if (results / one / MANIFEST).is_file()] + sorted(rows)


def export(
    manifest: Manifest,
    run: str,
    target: Path,
    dtype: str | None = None,
    max_shard_size: str = SHARD,
    merged: bool = False,
) -> Path:
    """Copy a model to the new folder `target`, so that it reads and ends texts as it was evaluated, with a model card.

    The folder appears complete or not at all. The files are checked against the manifest.

    Args:
        manifest: of the stage that made the model.
        run: the model's name.
        target: a new folder.
        dtype: rounds the weights; default: as trained, in float32.
        max_shard_size: of a file of weights, such as 5GB.
        merged: write the whole model where an adapter was trained.

    Raises:
        UserError: if the folder exists, a file is not the manifest's, or an adapter has no base that can be named.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already; name a new folder")
    suite = suite_folder(manifest)
    is_reward = manifest.content["stage"] == REWARD
    step = None if is_reward else training_of(suite, run)[1]
    inside = weights_of(manifest.path, step).relative_to(manifest.folder).as_posix()
    made = target.with_name(f".{target.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    _copy(manifest, inside, made)
    form = _prompt_format(manifest, suite, manifest.folder / inside)
    settings = generation_of(suite, run) or {}
    longest = settings.get("max_new_tokens") or (form.prepare.max_response_tokens if form else 0)
    notes: list[str] = []
    members = [path for path in (made, *sorted(made.glob("seeds/*"))) if (path / "config.json").is_file()]
    for folder in members:
        source = manifest.folder / (inside if folder == made else folder.relative_to(made))
        if merged and is_adapter(folder):
            write_merged(source, folder, is_reward)
        if form is not None:
            notes = write_tokenizer(form, folder, is_reward)
        if is_adapter(folder):
            if dtype is not None:
                raise UserError("--dtype: an adapter's weights are float32; add --merged, or leave the option out")
            name_base(source, folder)
            continue
        if form is not None:
            write_configs(form, folder, None if is_reward else longest)
        write_weights(folder, dtype, max_shard_size)
    about = Export(inside, dtype or "float32", form, longest, tuple(notes))
    (made / "README.md").write_text(card(manifest, run, about), encoding="utf-8")
    content = json.dumps(redact(manifest.content), sort_keys=True, indent=1) + "\n"
    (made / "prefdag.json").write_text(content, encoding="utf-8")
    target.mkdir(parents=True, exist_ok=True)
    os.replace(made, target)
    return target


def _copy(manifest: Manifest, inside: str, made: Path) -> None:
    """Copy the files of a model, and of a reward model its further members and scoring.json."""
    places = {name: name.removeprefix(f"{inside}/") for name in manifest.content["files"] if f"{inside}/" in name}
    if manifest.content["stage"] == REWARD:
        places |= {name: name for name in manifest.content["files"] if name.startswith("seeds/") or name == SCORING}
    if not any(name.startswith(f"{inside}/") for name in places):
        raise UserError(
            f"{manifest.path}: lists no weights in {inside}; `preference.checkpoints` sets how many a run saves"
        )
    for name, place in places.items():
        (made / place).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copyfile(manifest.file(name), made / place)
        if sha256_of(copy) != manifest.digest(name):
            raise UserError(f"{manifest.folder / name}: not the file that its manifest states; rerun its stage")


def _prompt_format(manifest: Manifest, suite: Path, model: Path) -> PromptFormat | None:
    """Return how the prompts that were evaluated are written; None if nothing is prepared."""
    evaluated = suite / "prepare/comparisons" / MANIFEST
    if evaluated.is_file():
        return PromptFormat.of(read_manifest(evaluated), model)
    prepared = next((one for one in lineage(manifest, suite) if one.content["stage"] == "prepare"), None)
    return PromptFormat.of(prepared, model) if prepared else None


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's name, <run>@round<N> or <run>@step<N> for a checkpoint, sft or reward")
    options(parser, "--results")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder (default: exports/<suite>/<run>)")
    parser.add_argument("--dtype", choices=DTYPES, help="round the weights (default: float32, as trained)")
    parser.add_argument("--max-shard-size", default=SHARD, metavar="SIZE", help="of a file of weights (default: 5GB)")
    parser.add_argument("--merged", action="store_true", help="write the whole model where an adapter was trained")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="make a new repository public")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and upload it to the Hub only if `--push` names a repository."""
    if arguments.public and not arguments.push:
        raise UserError("--public: has no effect without --push OWNER/NAME; add it")
    if not SIZE.fullmatch(arguments.max_shard_size):
        raise UserError(f"--max-shard-size {arguments.max_shard_size}: expected a size such as 5GB")
    manifest = manifest_of(arguments.run, arguments.results)
    suite = suite_folder(manifest).resolve().name
    folder = arguments.to or Path("exports") / suite / arguments.run
    target = export(manifest, arguments.run, folder, arguments.dtype, arguments.max_shard_size, arguments.merged)
    kind = "SequenceClassification" if manifest.content["stage"] == REWARD else "CausalLM"
    print(f"{target}: load it with AutoModelFor{kind}.from_pretrained({str(target)!r})")
    if arguments.push:
        print(f"pushed to {push(target, arguments.push, arguments.public)}")
    return 0
