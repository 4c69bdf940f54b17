"""Named helpers of the rules: the suite, and where its files lie."""

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


def checked_suite():
    """The suite, or one sentence and exit code 2. A key written twice is only seen in the files themselves."""
    label = str((workflow.configfiles or ["configs/quickstart.yaml"])[-1])
    try:
        stated = {}
        for path in map(os.path.relpath, workflow.configfiles):
            stated.update(dict.fromkeys(read_yaml(Path(path)), path))
        suite = resolve(config, os.path.relpath(label), stated)
        if not jobs.is_exact(suite):
            # An adapter, a template or a judge's prompt that is not there is found now.
            sources_of("prepare", (*suite.prepare.user_files(), *suite.judge.user_files()))
        return suite
    except UserError as mistake:
        print(f"prefdag: {mistake}", file=sys.stderr, flush=True)
        os._exit(2)  # Snakemake would wrap any exception in its own report


SUITE = checked_suite()
RESULTS = f"results/{SUITE.name}"
WEIGHTS = "model/model.safetensors"


def quoted(path):
    """A path of the user's in a shell command that Snakemake formats: one word, whatever it holds."""
    return quote(path).replace("{", "{{").replace("}", "}}")


# The interpreter that runs Snakemake runs the jobs; only `fetch`, and `judge` where a model judges, may reach the network.
# A signal reaches every process of a job at once: the shell waits for the stage to save and end, and `tee` for what it
# still has to say.
shell.prefix(
    f"set -euo pipefail; export PATH={quoted(os.path.dirname(sys.executable))}:\"$PATH\" PYTHONPATH={quoted(ROOT + '/workflow')}"
    " PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=agg; unset PYTHONDONTWRITEBYTECODE; "
    "trap : INT TERM; tee() {{ trap '' INT TERM; exec tee \"$@\"; }}; "
)
WARM = f"{RESULTS}/.warm"
OFFLINE = f"HF_HUB_OFFLINE=1 PREFDAG_WARM={WARM} "


def sources(stage, own=()):
    """Files that the stage's code is made of, compared by content; own: files of the user's own among them."""
    return [os.path.relpath(path, ROOT) for path in sources_of(stage, own)]


def config_of(stage, name=None):
    """A parameter function: canonical JSON of the keys this job may read; `name` is a wildcard's name or a value."""
    return lambda wildcards: jobs.config_of(SUITE, stage, wildcards.get(name, name) if name else None)


def threads_of(stage):
    return lambda wildcards: jobs.threads_of(SUITE, stage, wildcards.get("run"))


def resources_of(stage):
    """Resource functions of a training, by name: how many GPUs and nodes it takes is the suite's."""
    names = ("gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")
    return {name: lambda wildcards, name=name: jobs.resources_of(SUITE, stage, wildcards.get("run"))[name] for name in names}


def manifest(folder):
    return f"{RESULTS}/{folder}/manifest.json"


def answer_set(wildcards):
    return AnswerSet.parse(wildcards.answers)


def policy_manifest(wildcards):
    """The manifest of the policy that answers; the chosen responses have none."""
    folder = jobs.answering_folder(SUITE, answer_set(wildcards))
    return [manifest(folder)] if folder else []


def policy_weights(wildcards):
    """Weights are tracked by their manifest; ancient keeps a touched file from starting a cascade."""
    folder = jobs.answering_folder(SUITE, answer_set(wildcards))
    if folder and answer_set(wildcards).step:
        return [ancient(f"{RESULTS}/{folder}/checkpoints")]
    return ancient_weights(folder) if folder else []


def policy_option(wildcards, input):
    return f"--policy {input.policy}" if input.policy else ""


def reader_of(wildcards):
    """The tokenizer that puts nobody's answers into text; a policy brings its own."""
    return [] if policy_manifest(wildcards) else [manifest(jobs.folder_of(SUITE, "base"))]


def ancient_weights(folder):
    return [] if folder == "fetch/model" else [ancient(f"{RESULTS}/{folder}/{WEIGHTS}")]


def classifier_manifest():
    return [manifest(folder) for folder in [jobs.classifier_folder(SUITE)] if folder]


def classifier_option(wildcards, input):
    return f"--classifier {input.classifier}" if input.classifier else ""


def tokenizer_option(wildcards, input):
    return f"--tokenizer {input.tokenizer}" if input.get("tokenizer") else ""
