"""Define what the rules share: the suite, the paths of its files, and parameter functions."""

import os
import sys
from shlex import quote

sys.path.insert(0, str(workflow.basedir) + "/workflow")

from prefdag.config import jobs
from prefdag.config.answer_sets import AnswerSet
from prefdag.config.loading import read_yaml
from prefdag.config.suite import resolve
from prefdag.errors import UserError
from prefdag.provenance.sources import sources as sources_of

ROOT = os.path.abspath(workflow.basedir)


def load_suite():
    """Return the suite of the config files. Raises `UserError` for wrong or repeated keys, or a missing user's file."""
    label = str((workflow.configfiles or ["configs/quickstart.yaml"])[-1])
    origin_of_key = {}
    for path in map(os.path.relpath, workflow.configfiles):
        origin_of_key.update(dict.fromkeys(read_yaml(Path(path)), path))
    suite = resolve(config, os.path.relpath(label), origin_of_key)
    if not jobs.is_exact(suite):
        # Read the user's adapter, template and judge prompts now, not hours later in their jobs.
        sources_of("prepare", (*suite.prepare.user_files(), *suite.judge.user_files()))
    return suite


def stop(mistake):
    """End Snakemake with one sentence and exit code 2. Any other exception than SystemExit would print a traceback."""
    print(f"prefdag: {mistake}", file=sys.stderr, flush=True)
    sys.exit(2)


try:
    SUITE = load_suite()
except UserError as error:
    stop(error)
RESULTS = f"results/{SUITE.name}"
WEIGHTS = "model/model.safetensors"


def quoted(path):
    """Quote a user's path for a shell command that Snakemake formats: it stays one word with any character in it."""
    return quote(path).replace("{", "{{").replace("}", "}}")


# Jobs run with the interpreter that runs Snakemake. Only `fetch`, and `judge` with a model judge, may reach the network.
# `record FILE` writes a job's output to its log; on a cluster also to stdout, so that Slurm's log keeps every attempt.
# A signal reaches all processes of a job at once: bash and `record` ignore it and wait for the stage to save its state.
shell.prefix(
    f"set -euo pipefail; export PATH={quoted(os.path.dirname(sys.executable))}:\"$PATH\" PYTHONPATH={quoted(ROOT + '/workflow')}"
    " PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=agg; unset PYTHONDONTWRITEBYTECODE; trap : INT TERM; "
    f"record() {{{{ trap '' INT TERM; exec {'tee' if workflow.remote_exec else 'cat >'} \"$1\"; }}}}; "
)
WARM = f"{RESULTS}/.warm"
OFFLINE = f"HF_HUB_OFFLINE=1 PREFDAG_WARM={WARM} "


def sources(stage, user_files=()):
    """List the source files of a stage, with the user's files that it runs. Snakemake compares them by content."""
    return [os.path.relpath(path, ROOT) for path in sources_of(stage, user_files)]


def config_of(stage, name=None):
    """Return a parameter function: JSON of the keys that a job may read. `name` is a wildcard's name or a value."""
    return lambda wildcards: jobs.config_of(SUITE, stage, wildcards.get(name, name) if name else None)


def threads_of(stage):
    return lambda wildcards: jobs.threads_of(SUITE, stage, wildcards.get("run"))


def resources_of(stage):
    """Return resource functions of a training stage; the suite sets the numbers of GPUs and nodes."""
    names = ("gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")
    return {name: lambda wildcards, name=name: jobs.resources_of(SUITE, stage, wildcards.get("run"))[name] for name in names}


def manifest(folder):
    return f"{RESULTS}/{folder}/manifest.json"


def answer_set(wildcards):
    return AnswerSet.parse(wildcards.answers)


def policy_manifest(wildcards):
    """Return the manifest of the policy that answers; the chosen responses have none."""
    folder = jobs.answering_folder(SUITE, answer_set(wildcards))
    return [manifest(folder)] if folder else []


def policy_weights(wildcards):
    """Return the weights of the policy that answers, as `ancient`: the manifest tracks them, a touch reruns nothing."""
    folder = jobs.answering_folder(SUITE, answer_set(wildcards))
    if folder and answer_set(wildcards).step:
        return [ancient(f"{RESULTS}/{folder}/checkpoints")]
    return ancient_weights(folder) if folder else []


def tokenizer_of_chosen(wildcards):
    """Return the tokenizer that decodes the chosen responses; a policy brings its own."""
    return [] if policy_manifest(wildcards) else [manifest(jobs.folder_of(SUITE, "base"))]


def ancient_weights(folder):
    return [] if folder == "fetch/model" else [ancient(f"{RESULTS}/{folder}/{WEIGHTS}")]


def classifier_manifest():
    return [manifest(folder) for folder in [jobs.classifier_folder(SUITE)] if folder]


def options(*names):
    """Return a parameter function: `--name paths` for each of these inputs that the job has."""
    return lambda wildcards, input: " ".join(f"--{name} {input.get(name)}" for name in names if input.get(name))
