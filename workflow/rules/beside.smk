"""What runs beside the jobs: the writer into MLflow, and the process that local jobs are forked from."""

import signal as signals
import subprocess


TRACK = os.environ.get("PREFDAG_TRACK", "now")
if TRACK not in ("now", "later"):
    print(f"prefdag: PREFDAG_TRACK: expected now or later, got {TRACK!r}", file=sys.stderr, flush=True)
    os._exit(2)


def beside(log, *command, **variables):
    """Start a process that runs beside the jobs until they are done."""
    os.makedirs(f"{RESULTS}/.journal", exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/workflow", **variables}
    with open(f"{RESULTS}/.journal/{log}", "a") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)


def start_writer():
    """Follow the journals into MLflow while the workflow runs. Its trouble costs a view, never a run."""
    if TRACK == "later":
        return None
    # Nice: the jobs come first, the view of them may lag.
    python = ["nice", "-n", "10", sys.executable, "-m", "prefdag"]
    return beside("writer.log", *python, "track", RESULTS, "--follow", "--parent", str(os.getpid()))


def start_warm():
    """Local jobs fork from one process that has imported torch; cluster jobs start cold."""
    if workflow.non_local_exec or not hasattr(os, "pidfd_open"):
        return None
    quiet = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    server = [sys.executable, "-m", "prefdag.runtime.warm_start", WARM, str(os.getpid()), "prefdag.cli.main:main"]
    return beside("warm.log", *server, **quiet)


def finish(writer, warm, succeeded):
    """Let the writer drain, then say where everything is."""
    if warm is not None:
        warm.terminate()
        for path in Path(RESULTS).glob(".warm*"):
            path.unlink(missing_ok=True)
    if writer is not None:
        writer.send_signal(signals.SIGTERM)
        try:
            writer.wait(timeout=120)
        except subprocess.TimeoutExpired:
            print(f"MLflow is behind; it is brought up to date by `prefdag track {RESULTS}`", file=sys.stderr)
    if succeeded and os.path.exists(f"{RESULTS}/report/runs.csv"):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/workflow"}
        for tool in ("costs", "runs"):
            subprocess.run([sys.executable, "-m", "prefdag", tool, RESULTS], env=environment)


BESIDE = []  # what runs beside the jobs


onstart:
    BESIDE.extend([start_writer(), start_warm()])


onsuccess:
    finish(*(BESIDE or [None, None]), succeeded=True)


onerror:
    finish(*(BESIDE or [None, None]), succeeded=False)
