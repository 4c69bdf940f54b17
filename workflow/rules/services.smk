"""Run two processes during the workflow: the MLflow writer, and the warm-start server that local jobs fork from.

INPUTS   journals of the jobs
OUTPUTS  results/mlflow.db, results/<suite>/costs.html; the server's socket while the workflow runs
"""

import signal
import subprocess
import time

from prefdag.tracking.environment import problem_with, tracking_uri
from prefdag.tracking.waiting import wait_for_services
from snakemake.logging import logger

TRACK = os.environ.get("PREFDAG_TRACK", "now")
if TRACK not in ("now", "later"):
    stop(f"PREFDAG_TRACK: expected now or later, got {TRACK!r}")
STARTED = time.time()
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait for each other sleep soon: others need their cores
SERVICES = {}  # processes to end with the workflow


def start(log, *command, **variables):
    """Start a process that writes its output to `results/<suite>/.journal/<log>`."""
    os.makedirs(f"{RESULTS}/.journal", exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/workflow", **variables}
    with open(f"{RESULTS}/.journal/{log}", "a") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)


def start_writer():
    """Copy the journals into MLflow while the workflow runs. A failure here never fails the workflow."""
    # Low priority: the jobs come first, MLflow may lag behind.
    python = ["nice", "-n", "10", sys.executable, "-m", "prefdag"]
    return start("writer.log", *python, "track", RESULTS, "--follow", "--parent", str(os.getpid()))


def start_warm():
    """Start the server that has imported torch and forks into local jobs (prefdag.runtime.warm_start)."""
    quiet = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    server = [sys.executable, "-m", "prefdag.runtime.warm_start", WARM, str(os.getpid()), "prefdag.cli.main:main"]
    return start("warm.log", *server, **quiet)


def stop_services():
    """End the server, and wait until the writer has read every journal."""
    for path in Path(RESULTS).glob(".warm*"):
        path.unlink(missing_ok=True)
    for process in SERVICES.values():
        process.send_signal(signal.SIGTERM)
    say = lambda sentence: logger.info(sentence, extra={"console": True})
    if advice := wait_for_services(SERVICES, RESULTS, tracking_uri(Path("results")), say):
        logger.warning(advice)


def show_results():
    """Log the table of runs, where the report is, and what to try next; `console` marks the record for the console."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/workflow"}
    lines = []
    for command in ("runs", "costs") if os.path.exists(f"{RESULTS}/report/runs.csv") else ():
        prefdag = [sys.executable, "-m", "prefdag", command, RESULTS]
        lines += subprocess.run(prefdag, env=environment, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    if not lines:
        lines = [f"report:  {RESULTS}/report/index.html"]
    policies = [run.name for run in SUITE.runs[:1]] + ["sft"]
    compare = f"prefdag compare {' '.join(policies)} --results {RESULTS}"
    suggestions = {
        **({} if isinstance(SUITE, ExactSuite) else {compare: "two policies, prompt by prompt"}),  # an exact suite has no answers
        f"prefdag why {SUITE_FILES[-1]}": "which jobs run again after an edit",
        "prefdag plan configs/hh.yaml": "what a suite with a larger model would cost",
    }
    lines += ["", "Try next:", *(f"  {command:<55}  {purpose}" for command, purpose in suggestions.items())]
    logger.info("\n".join(lines), extra={"console": True})


onstart:
    record_suite_files(Path(RESULTS), SUITE_FILES)
    if TRACK == "now":
        if problem := problem_with(tracking_uri(Path("results"))):
            logger.warning(f"MLflow: {problem}; tracking waits, the jobs do not")
        SERVICES["writer"] = start_writer()
    if not workflow.non_local_exec and hasattr(os, "pidfd_open"):  # cluster jobs start cold
        SERVICES["warm"] = start_warm()


onsuccess:
    stop_services()
    page = Path(RESULTS, "report/index.html")
    if page.exists() and page.stat().st_mtime > STARTED:  # not if only other targets were made
        show_results()


onerror:
    stop_services()
