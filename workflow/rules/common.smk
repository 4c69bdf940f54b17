"""Named helpers of the rules: the suite, where its files lie, and what is done before and after a run."""

import os
import subprocess
import sys
import signal as signals

sys.path.insert(0, str(workflow.basedir) + "/workflow")

from prefdag import plan
from prefdag.config.suite import read_yaml, resolve
from prefdag.errors import UserError
from prefdag.sources import sources as sources_of

ROOT = os.path.abspath(workflow.basedir)


def checked_suite():
    """The suite, or one sentence and exit code 2. A key written twice is only seen in the files themselves."""
    label = str((workflow.configfiles or ["configs/quickstart.yaml"])[-1])
    try:
        stated = {}
        for path in map(os.path.relpath, workflow.configfiles):
            stated.update(dict.fromkeys(read_yaml(Path(path)), path))
        return resolve(config, os.path.relpath(label), stated)
    except UserError as mistake:
        print(f"prefdag: {mistake}", file=sys.stderr, flush=True)
        os._exit(2)  # Snakemake would wrap any exception in its own report


SUITE = checked_suite()
RESULTS = f"results/{SUITE.name}"
WEIGHTS = "model/model.safetensors"

# The interpreter that runs Snakemake runs the jobs; only `fetch` may reach the network.
shell.prefix(
    f"set -euo pipefail; export PATH='{os.path.dirname(sys.executable)}':\"$PATH\" PYTHONPATH='{ROOT}/workflow' PYTHONUNBUFFERED=1 "
    "TOKENIZERS_PARALLELISM=false MPLBACKEND=agg; unset PYTHONDONTWRITEBYTECODE; "
)
OFFLINE = "HF_HUB_OFFLINE=1 "


def sources(stage, own=()):
    """Files that the stage's code is made of, compared by content; own: files of the user's own among them."""
    return [os.path.relpath(path, ROOT) for path in sources_of(stage, own)]


def config_of(stage, name=None):
    """A parameter function: canonical JSON of the keys this job may read; `name` is a wildcard's name or a value."""
    return lambda wildcards: plan.config_of(SUITE, stage, wildcards.get(name, name) if name else None)


def threads_of(stage):
    return lambda wildcards: plan.threads_of(SUITE, stage, wildcards.get("run"))


def manifest(folder):
    return f"{RESULTS}/{folder}/manifest.json"


def policy_manifest(wildcards):
    return manifest(plan.folder_of(SUITE, wildcards.policy))


def policy_weights(wildcards):
    """Weights are tracked by their manifest; ancient keeps a touched file from starting a cascade."""
    return ancient_weights(plan.folder_of(SUITE, wildcards.policy))


def ancient_weights(folder):
    return [] if folder == "fetch/model" else [ancient(f"{RESULTS}/{folder}/{WEIGHTS}")]


def tokenizer_option(wildcards, input):
    return f"--tokenizer {input.tokenizer}" if input.get("tokenizer") else ""


def start_writer():
    """Follow the journals into MLflow while the workflow runs. Its trouble costs a view, never a run."""
    os.makedirs(f"{RESULTS}/.journal", exist_ok=True)
    # Nice: the jobs come first, the view of them may lag.
    command = ["nice", "-n", "10", sys.executable, "-m", "prefdag", "track", RESULTS, "--follow", "--parent", str(os.getpid())]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/workflow"}
    with open(f"{RESULTS}/.journal/writer.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def finish(writer, succeeded):
    """Let the writer drain, then say where everything is."""
    if writer is not None:
        writer.send_signal(signals.SIGTERM)
        try:
            writer.wait(timeout=120)
        except subprocess.TimeoutExpired:
            print(f"MLflow is behind; it is brought up to date by `prefdag track {RESULTS}`", file=sys.stderr)
    if succeeded and os.path.exists(f"{RESULTS}/report/runs.csv"):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/workflow"}
        subprocess.run([sys.executable, "-m", "prefdag", "runs", RESULTS], env=environment)


WRITER = []


onstart:
    WRITER.append(start_writer())


onsuccess:
    finish(WRITER[0] if WRITER else None, succeeded=True)


onerror:
    finish(WRITER[0] if WRITER else None, succeeded=False)
