"""Link the training of the chosen setting under the name of its row.

INPUTS   the choice of the row, and the trainings of its candidates with this seed
OUTPUTS  the files of the chosen training, hard links where the file system has them, and its manifest as training.json

With early stopping the choice may be a checkpoint: its weights are the policy's, the curves end at its step, and
training.json is the manifest of the training as it was then, without the facts and files of its end.
"""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from prefdag.errors import UserError
from prefdag.provenance.links import link_or_copy
from prefdag.provenance.manifest import PASSED_ON, TRAINING, WEIGHTS, Manifest, describe, read_manifest, weights_digest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

STEPS = {"curves.csv": "step", "samples.csv": "round"}  # files of a training along its steps, with their column


class Job(Section):
    """This stage reads no keys: the choice is an input."""


def run(job: Job, workspace: Workspace, *, choice: list[Path], candidates: list[Path]) -> dict[str, Any]:
    """Link the chosen training. Readers record its manifest as theirs, so that an equal choice reruns none of them."""
    chosen = json.loads((choice[0].parent / "choice.json").read_text())
    if (expected := chosen["candidates"] // chosen.get("lengths", 1)) != len(candidates):
        raise UserError(
            f"selected --candidates: {len(candidates)} manifests, and the choice is of {expected}; run "
            "`snakemake` to choose again"
        )
    training = read_manifest(candidates[chosen.get("training", chosen["candidate"])])
    training.check_weights("")
    step = chosen.get("checkpoint")
    folder = "model" if step is None else f"checkpoints/{step}"
    for name, source in (_whole(training) if step is None else _stopped(training, folder)).items():
        target = workspace.output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        give = link_or_copy if name.endswith(WEIGHTS) else shutil.copyfile
        give(training.file(source), target)
    if step is None:
        written = training.path.read_bytes()
    else:
        for name, column in STEPS.items():
            _end_at(workspace.output / name, column, step)
        about = {key: training.content[key] for key in ("stage", "config", "code", "inputs")}
        written = describe(workspace.output, **about, facts={"stopped_at": step})
    (workspace.output / TRAINING).write_bytes(written)
    name = workspace.name or "selected"
    digest = weights_digest(training, folder)
    workspace.journal.model(name, path=training.folder / folder, sha256=digest, role="input")
    workspace.results({key: value for key, value in chosen["setting"].items() if isinstance(value, int | float)})
    made_by = f"{training.folder.parent.name}/{training.folder.name}"
    return {PASSED_ON: hashlib.sha256(written).hexdigest(), "setting": chosen["setting"], "training": made_by}


def _whole(training: Manifest) -> dict[str, str]:
    """Return the files of a training, each with its name there."""
    return {name: name for name in training.content["files"]}


def _stopped(training: Manifest, folder: str) -> dict[str, str]:
    """Return the files of a training stopped at a checkpoint: its model is that of `folder`.

    Files that measure the policy at the training's end are left out.
    """
    saved = [name for name in training.content["files"] if name.startswith("checkpoints/") or name in STEPS]
    model = [name for name in saved if name.startswith(f"{folder}/")]
    return {**{name.replace(folder, "model", 1): name for name in model}, **{name: name for name in saved}}


def _end_at(path: Path, column: str, step: int) -> None:
    """Remove the rows of a table that are after a step, if there is the table."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = [row for row in reader if int(row[column]) <= step]
        names = reader.fieldnames or []
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
