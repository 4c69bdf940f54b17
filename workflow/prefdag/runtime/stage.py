"""What every stage has in common: its workspace, its journal and its manifest.

A stage is a module of `prefdag.stages` with a `Job` (the shape of `--config`) and a function
`run(job, here, *, <input>: Path, ...)`; each input is the path of a manifest. The command line is read off that
signature, so a stage states what it depends on exactly once.
"""

import hashlib
import json
import logging
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

from prefdag.distributed.ranks import is_first, num_ranks, rank
from prefdag.errors import Stopped, UserError
from prefdag.os_errors import as_sentences
from prefdag.provenance.journal import Journal, Status, open_journal
from prefdag.provenance.manifest import (
    MANIFEST,
    Manifest,
    combined_digest,
    describe,
    publish,
    read_manifest,
    sha256_of,
    weights_digest,
)
from prefdag.provenance.sources import code_digest
from prefdag.runtime.job_lock import hold_job_lock
from prefdag.runtime.monitor import ResourceMonitor
from prefdag.schema import Section

logger = logging.getLogger(__name__)


@dataclass
class Workspace:
    """What a stage is handed beside its inputs.

    output: an empty folder; its content is renamed into place when the stage returns.
    resume: where resumable state may be kept between attempts of this very job (it may not exist yet).

    Of a job's several processes only what the first one puts into its output and its journal stays.
    """

    stage: str
    name: str | None
    output: Path
    resume: Path
    journal: Journal
    inputs: Mapping[str, Manifest | list[Manifest]]

    def log_model_input(self, argument: str, name: str, folder: str = "model") -> None:
        """Tell the journal that the weights of an input, in its `folder`, are read; they are what its manifest says."""
        manifest = self._input(argument)
        manifest.check_weights(folder)
        self.journal.model(name, path=manifest.folder / folder, sha256=weights_digest(manifest, folder), role="input")

    def log_model_output(self, name: str, parents: Sequence[str] = (), folder: str = "model") -> None:
        """Tell the journal that this job made the weights in `output`/`folder`; parents: the inputs they grew from."""
        digest = combined_digest([sha256_of(path) for path in sorted((self.output / folder).glob("*.safetensors"))])
        grown = [weights_digest(self._input(parent)) for parent in parents]
        self.journal.model(name, path=self.output / folder, sha256=digest, role="output", parents=grown)

    def log_dataset(self, argument: str, split: str, context: Literal["training", "evaluation"]) -> None:
        """Tell the journal that a split of an input's comparisons is read."""
        manifest = self._input(argument)
        digest = combined_digest([manifest.digest(f"{split}/{name}.npy") for name in ("offsets", "tokens")])
        self.journal.dataset(f"{argument}-{split}", digest=digest, path=manifest.folder / split, context=context)

    def results(self, values: Mapping[str, float]) -> None:
        """Tell the journal the numbers that the whole job comes to."""
        self.journal.metrics(None, values)

    def _input(self, argument: str) -> Manifest:
        manifest = self.inputs[argument]
        assert isinstance(manifest, Manifest)
        return manifest


def run_stage(stage: str, module: ModuleType, config: str, paths: Mapping[str, Any], output: Path) -> None:
    """Run one stage.

    Args:
        stage: its name.
        module: its module, with `Job` and `run`.
        config: JSON of the keys that `Job` states.
        paths: manifests by the names of `run`'s arguments: one, a list, or None.
        output: the manifest to write, results/<suite>/<stage>/[<name>/]manifest.json.
    """
    _execute(stage, module.run, module.Job.parse_json(config, f"{stage} --config"), paths, output)


def _execute(stage: str, run: Callable[..., Any], job: Section, paths: Mapping[str, Any], output: Path) -> None:
    if output.name != MANIFEST:
        raise UserError(f"{stage} --output: expected a path that ends in {MANIFEST}, got {output}")
    root, name = _place(stage, output)
    inputs = {key: _read_inputs(value) for key, value in paths.items() if value}
    digests = {key: _digests(value) for key, value in inputs.items()}
    code = code_digest(stage, job.user_files())
    config = job.model_dump(mode="json")
    made_of = {"stage": stage, "config": config, "code": code, "inputs": digests}
    key = f"{_job(stage, name)}-{_key(job.stable_part(), code, digests)}"
    made = root / ".partial" / (key if is_first() else f"{key}-{rank()}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if not is_first():
        _make_folder(made)
        journal = Journal(made / "journal.jsonl", root=root, stage=stage, name=name)
        _go_along(run, job, Workspace(stage, name, made, root / ".resume" / key, journal, inputs), paths)
        return
    _make_folder(root)
    with as_sentences(stage, root), hold_job_lock(root, _job(stage, name)) as another_did:
        # Of several processes the others are on their way already, and would wait for this one.
        if another_did and num_ranks() == 1 and _is_made(output, made_of):
            logger.info("%s: another process has written %s meanwhile", stage, output)
            return
        for manifest in _flat(inputs):
            manifest.check_but_weights()
        shutil.rmtree(made, ignore_errors=True)
        _make_folder(made)
        _make_folder(output.parent)
        output.unlink(missing_ok=True)
        journal = open_journal(root, stage, name)
        workspace = Workspace(stage, name, made, root / ".resume" / key, journal, inputs)
        journal.start(config=config, inputs=_journalled(inputs), code=code)
        _attempt(workspace, lambda: run(job, workspace, **paths), made_of, output)


def _attempt(workspace: Workspace, run: Callable[[], Any], made_of: Mapping[str, Any], output: Path) -> None:
    """Run the stage in its workspace and publish what it made; whatever happens, the journal says how it ended."""
    began = time.monotonic()
    status: Status = "failed"
    mistake, digest = None, None
    try:
        with as_sentences(workspace.stage, workspace.journal.root), ResourceMonitor(workspace.journal):
            facts = run()
            publish(workspace.output, output.parent, describe(workspace.output, **made_of, facts=facts or {}))
        _forget(workspace)
        status, digest = "finished", read_manifest(output).sha256
    except Stopped:
        status, mistake = "killed", "told to stop"
        raise
    except BaseException as error:
        mistake = f"{type(error).__name__}: {error}"
        raise
    finally:
        shutil.rmtree(workspace.output, ignore_errors=True)
        seconds, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        try:
            workspace.journal.end(status=status, error=mistake, manifest=digest, seconds=seconds, peak_memory_mb=peak)
        except OSError as error:  # a full disk; of a job that failed its own sentence says so
            if status == "finished":
                logger.warning("%s: its end is not written (%s)", workspace.journal.path, error.strerror)


def _job(stage: str, name: str | None) -> str:
    return f"{stage}-{name or 'all'}"


def _is_made(output: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether a manifest of this very job is there, and its files with it."""
    try:
        manifest = read_manifest(output)
        manifest.check(lambda name: True)
    except UserError:
        return False
    return all(manifest.content[part] == value for part, value in made_of.items())


def _forget(workspace: Workspace) -> None:
    """Remove the states of this job and, as its output now exists, those that it left with another config or code."""
    own = re.compile(re.escape(_job(workspace.stage, workspace.name)) + "-[0-9a-f]{16}")
    for folder in (workspace.resume.parent, workspace.output.parent):
        for path in folder.glob("*"):
            if own.fullmatch(path.name) and path != workspace.output:
                shutil.rmtree(path, ignore_errors=True)


def _go_along(run: Callable[..., Any], job: Section, workspace: Workspace, paths: Mapping[str, Any]) -> None:
    """What every process but a job's first does: the same work, of which nothing stays."""
    try:
        run(job, workspace, **paths)
    finally:
        shutil.rmtree(workspace.output, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


def _place(stage: str, output: Path) -> tuple[Path, str | None]:
    """The suite's folder and the job's name, from results/<suite>/<stage>/[<name>/]manifest.json."""
    folder = output.parent
    if folder.name == stage:
        return folder.parent, None
    if folder.parent.name == stage:
        return folder.parent.parent, folder.name
    raise UserError(f"{stage} --output: expected .../{stage}/[<name>/]{MANIFEST}, got {output}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); choose a writable results folder") from None


def _read_inputs(value: Path | list[Path]) -> Manifest | list[Manifest]:
    return [read_manifest(path) for path in value] if isinstance(value, list) else read_manifest(value)


def _flat(inputs: Mapping[str, Manifest | list[Manifest]]) -> list[Manifest]:
    return [one for value in inputs.values() for one in (value if isinstance(value, list) else [value])]


def _digests(value: Manifest | list[Manifest]) -> Any:
    return [manifest.sha256 for manifest in value] if isinstance(value, list) else value.sha256


def _journalled(inputs: Mapping[str, Manifest | list[Manifest]]) -> dict[str, Any]:
    """Inputs as the journal shows them: a long list of manifests is told by its members' numbers."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        for index, manifest in enumerate(value if isinstance(value, list) else [value]):
            key = f"{name}.{index}" if isinstance(value, list) else name
            flat[key] = {"path": str(manifest.path), "sha256": manifest.sha256}
    return flat


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
