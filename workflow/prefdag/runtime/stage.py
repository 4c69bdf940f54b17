"""Run a stage: read its inputs, give it a workspace, journal what it does, and publish its output with a manifest.

A stage is a module of `prefdag.stages` with a `Job` (the schema of `--config`) and a function
`run(job, workspace, *, <input>: Path, ...)`. Each input is the path of a manifest. The command line is derived from
this signature, so a stage declares its dependencies exactly once.
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
from prefdag.provenance.sources import code_digests
from prefdag.runtime.job_lock import hold_job_lock
from prefdag.runtime.monitor import ResourceMonitor
from prefdag.schema import Section

logger = logging.getLogger(__name__)


@dataclass
class Workspace:
    """The folders and the journal of one job.

    In a job with several processes, only the output and the journal of the first process are published.

    Attributes:
        stage: the stage's name.
        name: the job's name within its stage, None for a stage with one job.
        output: an empty folder; its content is renamed into place when the stage returns.
        resume: a folder for state that a later attempt at the same job continues from; it may not exist yet.
        journal: receives metrics, datasets, models and artifacts.
        inputs: the manifests of the inputs, by the names of `run`'s arguments.
    """

    stage: str
    name: str | None
    output: Path
    resume: Path
    journal: Journal
    inputs: Mapping[str, Manifest | list[Manifest]]

    def log_model_input(self, argument: str, name: str, folder: str = "model") -> None:
        """Journal that the job reads the weights in `folder` of an input. Raises `UserError` if they are corrupt."""
        manifest = self._input(argument)
        manifest.check_weights(folder)
        self.journal.model(name, path=manifest.folder / folder, sha256=weights_digest(manifest, folder), role="input")

    def log_model_output(self, name: str, parents: Sequence[str] = (), folder: str = "model") -> None:
        """Journal that the job made the weights in `output`/`folder`, starting from those of the inputs `parents`."""
        digest = combined_digest([sha256_of(path) for path in sorted((self.output / folder).glob("*.safetensors"))])
        digests = [weights_digest(self._input(parent)) for parent in parents]
        self.journal.model(name, path=self.output / folder, sha256=digest, role="output", parents=digests)

    def log_dataset(self, argument: str, split: str, context: Literal["training", "evaluation"]) -> None:
        """Journal that the job reads a split of an input's comparisons."""
        manifest = self._input(argument)
        digest = combined_digest([manifest.digest(f"{split}/{name}.npy") for name in ("offsets", "tokens")])
        self.journal.dataset(f"{argument}-{split}", digest=digest, path=manifest.folder / split, context=context)

    def results(self, values: Mapping[str, float]) -> None:
        """Journal the results of the whole job."""
        self.journal.metrics(None, values)

    def _input(self, argument: str) -> Manifest:
        manifest = self.inputs[argument]
        assert isinstance(manifest, Manifest)
        return manifest


@dataclass(frozen=True)
class _Plan:
    """What a job will run, derived from its command line and its inputs' manifests."""

    stage: str
    name: str | None
    root: Path  # the suite's folder
    output: Path  # the manifest to write
    run: Callable[[Workspace], Any]
    made_of: Mapping[str, Any]  # stage, config, code and inputs as the output's manifest states them
    inputs: Mapping[str, Manifest | list[Manifest]]
    key: str  # identifies the state that another attempt may continue from

    @property
    def partial(self) -> Path:
        """Return the folder that this process writes into until the output is published."""
        return self.root / ".partial" / (self.key if is_first() else f"{self.key}-{rank()}")

    def workspace(self, journal: Journal) -> Workspace:
        return Workspace(self.stage, self.name, self.partial, self.root / ".resume" / self.key, journal, self.inputs)


def run_stage(stage: str, module: ModuleType, config: str, paths: Mapping[str, Any], output: Path) -> None:
    """Run one stage, in this process or, with several, in its share of them.

    Args:
        stage: the stage's name.
        module: its module, with `Job` and `run`.
        config: JSON of the keys that `Job` declares.
        paths: manifests by the names of `run`'s arguments: one, a list, or None.
        output: the manifest to write, results/<suite>/<stage>/[<name>/]manifest.json.

    Raises:
        UserError: the config, an input or the output is wrong, or the stage found a mistake of the user.
        Stopped: SIGTERM or SIGINT arrived.
    """
    plan = _plan(stage, module, config, paths, output)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if is_first():
        _run_first(plan)
    else:
        _run_further(plan)


def _plan(stage: str, module: ModuleType, config: str, paths: Mapping[str, Any], output: Path) -> _Plan:
    job: Section = module.Job.parse_json(config, f"{stage} --config")
    if output.name != MANIFEST:
        raise UserError(f"{stage} --output: expected a path that ends in {MANIFEST}, got {output}")
    root, name = _place(stage, output)
    inputs = {key: _read_inputs(value) for key, value in paths.items() if value}
    digests = {key: _digests(value) for key, value in inputs.items()}
    code = code_digests(stage, job.user_files())
    made_of = {"stage": stage, "config": job.model_dump(mode="json"), "code": code, "inputs": digests}
    key = f"{_job(stage, name)}-{_key(job.stable_part(), code, digests)}"

    def run(workspace: Workspace) -> Any:
        return module.run(job, workspace, **paths)

    return _Plan(stage, name, root, output, run, made_of, inputs, key)


def _run_first(plan: _Plan) -> None:
    """Run the stage in the job's first process, which alone locks, journals and publishes."""
    _make_folder(plan.root)
    with as_sentences(plan.stage, plan.root), hold_job_lock(plan.root, _job(plan.stage, plan.name)) as waited:
        # With several processes the others have started the work already, and would wait for this one.
        # `fetch` reads files and the network, which only a planned run states in its config.
        skippable = num_ranks() == 1 and (waited or plan.stage != "fetch" or bool(plan.made_of["config"].get("files")))
        if skippable and _is_made(plan.output, plan.made_of):
            reason = "another process has made it" if waited else "config, code and inputs are those it was made from"
            logger.info("%s: %s is up to date: %s", plan.stage, plan.output, reason)
            return
        for manifest in _flat(plan.inputs):
            manifest.check_but_weights()
        shutil.rmtree(plan.partial, ignore_errors=True)
        _make_folder(plan.partial)
        _make_folder(plan.output.parent)
        plan.output.unlink(missing_ok=True)
        journal = open_journal(plan.root, plan.stage, plan.name)
        journal.start(config=plan.made_of["config"], inputs=_journalled(plan.inputs), code=_key(plan.made_of["code"]))
        _attempt(plan, plan.workspace(journal))


def _run_further(plan: _Plan) -> None:
    """Run the stage in a process other than the job's first: the same work, whose output is discarded."""
    _make_folder(plan.partial)
    journal = Journal(plan.partial / "journal.jsonl", root=plan.root, stage=plan.stage, name=plan.name)
    try:
        plan.run(plan.workspace(journal))
    finally:
        shutil.rmtree(plan.partial, ignore_errors=True)


def _attempt(plan: _Plan, workspace: Workspace) -> None:
    """Run the stage in its workspace and publish its output. The journal's last line states how the job ended."""
    started = time.monotonic()
    status: Status = "failed"
    mistake, digest = None, None
    try:
        with as_sentences(plan.stage, plan.root), ResourceMonitor(workspace.journal):
            facts = plan.run(workspace)
            publish(workspace.output, plan.output.parent, describe(workspace.output, **plan.made_of, facts=facts or {}))
        _remove_states(workspace)
        status, digest = "finished", read_manifest(plan.output).sha256
    except Stopped:
        status, mistake = "killed", "stopped by a signal"
        raise
    except BaseException as error:
        mistake = f"{type(error).__name__}: {error}"
        raise
    finally:
        shutil.rmtree(workspace.output, ignore_errors=True)
        seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        try:
            workspace.journal.end(status=status, error=mistake, manifest=digest, seconds=seconds, peak_memory_mb=peak)
        except OSError as error:  # a full disk; a job that failed has its own sentence
            if status == "finished":
                path = workspace.journal.path
                logger.warning("%s: cannot write the job's end (%s); the output is complete", path, error.strerror)


def _job(stage: str, name: str | None) -> str:
    return f"{stage}-{name or 'all'}"


def _is_made(output: Path, made_of: Mapping[str, Any]) -> bool:
    """Return whether the manifest of this job exists, and its files are complete."""
    try:
        manifest = read_manifest(output)
        manifest.check(lambda name: True)
    except UserError:
        return False
    return all(manifest.content[part] == value for part, value in made_of.items())


def _remove_states(workspace: Workspace) -> None:
    """Remove this job's resumable states, including those of other configs and code: its output exists now."""
    states = re.compile(re.escape(_job(workspace.stage, workspace.name)) + "-[0-9a-f]{16}")
    for folder in (workspace.resume.parent, workspace.output.parent):
        for path in folder.glob("*"):
            if states.fullmatch(path.name) and path != workspace.output:
                shutil.rmtree(path, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


def _place(stage: str, output: Path) -> tuple[Path, str | None]:
    """Return the suite's folder and the job's name of results/<suite>/<stage>/[<name>/]manifest.json."""
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
    """Return path and digest of each input; manifests of a list get numbered names."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        for index, manifest in enumerate(value if isinstance(value, list) else [value]):
            key = f"{name}.{index}" if isinstance(value, list) else name
            flat[key] = {"path": str(manifest.path), "sha256": manifest.sha256}
    return flat


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
