"""Link the training of the chosen setting under the name of its row.

INPUTS   the choice of the row, and the trainings of its candidates with this seed
OUTPUTS  the files of the chosen training, hard links where the file system has them, and its manifest as training.json
"""

import json
import shutil
from pathlib import Path
from typing import Any

from prefdag.errors import UserError
from prefdag.provenance.links import link_or_copy
from prefdag.provenance.manifest import PASSED_ON, TRAINING, WEIGHTS, read_manifest, weights_digest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section


class Job(Section):
    """This stage reads no keys: the choice is an input."""


def run(job: Job, workspace: Workspace, *, choice: list[Path], candidates: list[Path]) -> dict[str, Any]:
    """Link the chosen training. Readers record its manifest as theirs, so that an equal choice reruns none of them."""
    chosen = json.loads((choice[0].parent / "choice.json").read_text())
    if len(candidates) != chosen["candidates"]:
        raise UserError(
            f"selected --candidates: {len(candidates)} manifests, and the choice is of {chosen['candidates']}; run "
            "`snakemake` to choose again"
        )
    training = read_manifest(candidates[chosen["candidate"]])
    training.check_weights("")
    for name in training.content["files"]:
        target = workspace.output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        give = link_or_copy if name.endswith(WEIGHTS) else shutil.copyfile
        give(training.file(name), target)
    shutil.copyfile(training.path, workspace.output / TRAINING)
    name = workspace.name or "selected"
    digest = weights_digest(training)
    workspace.journal.model(name, path=training.folder / "model", sha256=digest, role="input")
    workspace.results({key: value for key, value in chosen["setting"].items() if isinstance(value, int | float)})
    return {PASSED_ON: training.sha256, "setting": chosen["setting"]}
