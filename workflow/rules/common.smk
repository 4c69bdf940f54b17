"""Define what the rules share: the suite, the paths of its files, and parameter functions."""

import os
import sys
from shlex import quote

sys.path.insert(0, str(workflow.basedir) + "/workflow")
for name in [name for name in sys.modules if name.partition(".")[0] == "prefdag"]:
    del sys.modules[name]  # the logger plugin's, which may be another clone's

from prefdag.config import jobs, resources
from prefdag.config.loading import read_yaml
from prefdag.config.suite import ExactSuite, resolve
from prefdag.errors import UserError
from prefdag.planning import freshness
from prefdag.planning.graph import inputs_of, jobs_of, made_before, stages_of
from prefdag.planning.plan_run import plan_run
from prefdag.planning.suite_files import record_suite_files
from prefdag.provenance.digests import Digests

ROOT = os.path.abspath(workflow.basedir)
SUITE_FILES = [os.path.relpath(path) for path in workflow.configfiles or ["configs/quickstart.yaml"]]


def load_suite():
    """Return the suite of the config files. Raises `UserError` for wrong or repeated keys, or a missing user's file."""
    origin_of_key = {key: path for path in SUITE_FILES for key in read_yaml(Path(path))}
    return resolve(config, SUITE_FILES[-1], origin_of_key)


def stop(mistake):
    """End Snakemake with a sentence for each mistake and exit code 2. Only SystemExit prints no traceback."""
    for sentence in str(mistake).split("\n"):
        print(f"prefdag: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)


try:
    SUITE = load_suite()
    RESULTS = f"results/{SUITE.name}"
    DIGESTS = Digests(Path(RESULTS, ".cache/digests.json"))
    # Jobs whose results do not fit the suite. A cluster's job runs what it was submitted for.
    OUTDATED = plan_run(SUITE, Path(RESULTS), SUITE_FILES, DIGESTS) if workflow.is_main_process else {}
    if any(folder.startswith(("fetch/", "evaluate_reward/")) for folder in OUTDATED):
        from prefdag.data.preflight import check_new_rows  # numpy, which a run without new rows does not need
        check_new_rows(SUITE, OUTDATED)
except UserError as error:
    stop(error)
MARKER = f"{RESULTS}/.cache/outdated"
if any(os.path.exists(f"{RESULTS}/{folder}/manifest.json") for folder in OUTDATED):
    freshness.renew(Path(MARKER))


def quoted(path):
    """Quote a user's path for a shell command that Snakemake formats: it stays one word with any character in it."""
    return quote(path).replace("{", "{{").replace("}", "}}")


# Jobs run with the interpreter that runs Snakemake. Only `fetch`, and `judge` with a model judge, may reach the network.
# `record FILE` writes a job's output to its log; on a cluster also to stdout, so that Slurm's log keeps every attempt.
# A signal reaches all processes of a job at once: bash ignores it, as `record` does, and waits for the stage.
shell.prefix(
    f"set -euo pipefail; export PATH={quoted(os.path.dirname(sys.executable))}:\"$PATH\" PYTHONPATH={quoted(ROOT + '/workflow')}"
    " PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=agg; unset PYTHONDONTWRITEBYTECODE; trap : INT TERM; "
    f"PREFDAG_TEE={'yes' if workflow.remote_exec else ''}; source {quoted(ROOT + '/workflow/rules/record.sh')}; "
)
WARM = f"{RESULTS}/.warm"
OFFLINE = f"HF_HUB_OFFLINE=1 PREFDAG_WARM={WARM} "


def job_name(wildcards, name):
    """Return the value of the wildcard `name`, or `name` itself if the rule has no such wildcard."""
    return wildcards.get(name, name) if name else None


def config_of(stage, name=None):
    """Return a parameter function: JSON of the keys that a job may read. `name` is a wildcard's name or a value."""
    return lambda wildcards: freshness.config_of(SUITE, stage, job_name(wildcards, name), DIGESTS)


def inputs(stage, name=None):
    """Return an input function: the manifests that a job reads, by option, and those made before it.

    Those of a job that is up to date are `ancient`, so modification times start nothing. An outdated job also reads a
    file that is always new, which makes Snakemake run it. Its manifests must not be `ancient`: Snakemake would skip a
    job without output if another one, whose output exists, runs before it.
    """

    def manifests(wildcards):
        job = job_name(wildcards, name)
        folder = f"{stage}/{job}" if job else stage
        read = {option: [*map(manifest, folders)] for option, folders in inputs_of(SUITE, stage, job).items()}
        read["made_before"] = [*map(manifest, made_before(SUITE, stage))]
        if folder not in OUTDATED:
            return {option: [*map(ancient, paths)] for option, paths in read.items()}
        return {**read, "outdated": [MARKER] if os.path.exists(manifest(folder)) else []}

    return manifests


def options(stage, name=None):
    """Return a parameter function: the options that name a job's inputs on its command line."""

    def text(wildcards):
        folders = inputs_of(SUITE, stage, job_name(wildcards, name)).items()
        return " ".join(f"--{option} {' '.join(map(manifest, each))}" for option, each in folders if each)

    return text


def threads_of(stage):
    return lambda wildcards: resources.threads_of(SUITE, stage, wildcards.get("run"))

def resources_of(stage):
    """Return resource functions of a training stage; the suite sets the numbers of GPUs and nodes."""
    names = ("gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")
    return {name: lambda wildcards, name=name: resources.resources_of(SUITE, stage, wildcards.get("run"))[name] for name in names}

def manifest(folder):
    return f"{RESULTS}/{folder}/manifest.json"
