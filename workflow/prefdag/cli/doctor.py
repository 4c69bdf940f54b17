"""Check a machine or cluster before a run, and print what to do about each problem.

Each check is one function, each finding one line. The exit code is 1 if a finding is an error.
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from prefdag.cli.commands import COMMON
from prefdag.cli.hub_files import Finding, hub_cache
from prefdag.cli.plan import disk
from prefdag.config.adapter_folder import base_of_model
from prefdag.config.site import PREFIX, Site, read_site
from prefdag.config.suite import ExactSuite, Suite, read_suite
from prefdag.distributed.gpu_lease import VARIABLE, devices
from prefdag.errors import UserError
from prefdag.planning.machine import absent_gpus, bf16_warning, slow_bf16
from prefdag.planning.suite_files import check_suite_files
from prefdag.planning.suite_paths import check_paths
from prefdag.provenance.sources import PACKAGE
from prefdag.tracking.environment import problem_with, tracking_uri

PROJECT = PACKAGE.parents[1] / "pyproject.toml"
SHARED = re.compile(r"nfs\d?|cifs|smb\d?|lustre|gpfs|beegfs|ceph|glusterfs|afs|9p|fuse\.\w+")
MIN_JOB_AGE = 60  # seconds: the profile polls every 20 s at first, and squeue must list an ended job for three polls
LOW_SPACE = 5.0  # GB


def findings(suite: Suite | ExactSuite, results: Path) -> Iterator[Finding]:
    """Run every check, in the order in which a run would meet its problem."""
    yield from versions(PROJECT)
    yield from writable(results)
    yield from clock_skew(results)
    yield from disk_space(suite, results)
    yield from left_behind(results)
    yield from tracking(results)
    yield from hub_cache(suite)
    yield from route(suite, results)
    yield from gpus(os.environ)
    yield bf16(suite, os.environ)
    yield from slurm(os.environ)


def versions(project: Path) -> Iterator[Finding]:
    """Compare installed packages with the pins: results are reproducible with these versions only."""
    pins = tomllib.loads(project.read_text())["project"]["dependencies"]
    remedy = "install the pins: `make reproduce`, or pip install -e ."
    differing = False
    for name, pinned in (pin.split("==") for pin in pins):
        try:
            installed = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed != pinned:
            differing = True
            level: Literal["warning", "error"] = "warning" if installed else "error"
            yield Finding(level, "versions", f"{name} is {installed or 'missing'}, the pin is {pinned}", remedy)
    if not differing:
        yield Finding("ok", "versions", f"{len(pins)} packages as pinned")


def writable(results: Path) -> Iterator[Finding]:
    """Check that the folders that a run writes to are writable."""
    for folder in (results, Path(".snakemake"), Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                yield Finding("ok", "write", f"{folder} is writable")
        except OSError as error:
            remedy = "choose another working folder" if folder.name != "tmp" else "set TMPDIR to a writable folder"
            yield Finding("error", "write", f"{folder} is not writable ({error.strerror})", remedy)


def clock_skew(results: Path) -> Iterator[Finding]:
    """Compare the file system's clock with this machine's: a file stamped in the future looks new to Snakemake."""
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(results)) as file:
            ahead = os.stat(file.name).st_mtime - time.time()
    except OSError:
        return  # `writable` reports it
    if abs(ahead) < 2:
        yield Finding("ok", "clock", "the file system and this machine agree")
    else:
        what = f"new files are stamped {ahead:+.0f} s from this machine's clock"
        yield Finding("warning", "clock", what, "synchronise both clocks (NTP); otherwise Snakemake may rerun jobs")


def disk_space(suite: Suite | ExactSuite, results: Path) -> Iterator[Finding]:
    """Compare free space with what the suite's weights will take, if it states its size."""
    free = shutil.disk_usage(_existing(results)).free / 1e9
    needed = disk(suite, suite.size) if isinstance(suite, Suite) and suite.size else None
    what = f"{free:.0f} GB free"
    if needed is not None:
        what += f", {needed:.0f} GB needed for weights and states"
    if needed is not None and free < needed:
        yield Finding("error", "space", what, "free some space, or use a larger file system")
    elif free < LOW_SPACE:
        yield Finding("warning", "space", what, "free some space: a full disk stops every job")
    else:
        yield Finding("ok", "space", what)


def left_behind(results: Path) -> Iterator[Finding]:
    """List the saved states of stopped trainings: a finished job removes only the states of its own name."""
    for folder in sorted(results.glob("*/.resume/*")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e9
        days = (time.time() - max((path.stat().st_mtime for path in files), default=time.time())) / 86400
        what = f"{folder} ({size:.1f} GB, {days:.0f} days old) is the saved state of a stopped training"
        yield Finding("ok", "resume", what, "delete it if you have given up that training")


def tracking(results: Path) -> Iterator[Finding]:
    """Check where MLflow's runs go: SQLite's locks are unreliable on file systems that machines share."""
    uri = tracking_uri(results)
    path = uri.removeprefix("sqlite:///")
    if problem := problem_with(uri):
        remedy = "correct MLFLOW_TRACKING_URI, or start the server; `prefdag track results/<suite>` catches up"
        yield Finding("warning", "mlflow", problem, remedy)
        return
    if path == uri:
        yield Finding("ok", "mlflow", f"runs go to {uri.rpartition('@')[2]}")
        return
    kind = file_system(Path(path), Path("/proc/self/mounts"))
    if SHARED.fullmatch(kind):
        remedy = "set MLFLOW_TRACKING_URI to a server, or to sqlite:/// on a disk of this machine"
        yield Finding("warning", "mlflow", f"{path} is SQLite on {kind}", remedy)
    else:
        yield Finding("ok", "mlflow", f"{path} is SQLite on {kind}")


def file_system(path: Path, mounts: Path) -> str:
    """Return the type of the file system of a path, which need not exist yet; `unknown` if the system does not say."""
    if not mounts.is_file():
        return "unknown"
    at = _existing(path).resolve()
    mounted = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    above = [(point, kind) for point, kind in mounted if at.is_relative_to(point.replace("\\040", " "))]
    return max(above, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def route(suite: Suite | ExactSuite, results: Path) -> Iterator[Finding]:
    """State how the suite's model is computed, if its config.json is on this machine."""
    if isinstance(suite, ExactSuite):
        return
    whole = Path(base_of_model(suite.model) or suite.model.source)
    folder = next((path for path in (results / "fetch/model", whole) if path.is_dir()), None)
    if folder is None or not (folder / "config.json").is_file():
        return
    from prefdag.models.loading import route_of_folder

    kind, route = route_of_folder(folder)
    reason = f": {route.reason}" if route.reason else ""
    yield Finding("ok", "model", f"{folder} ({kind}) is computed {route}{reason}")


def gpus(environment: Mapping[str, str]) -> Iterator[Finding]:
    """List the GPUs of the system, and check that torch sees them."""
    if absent := absent_gpus(environment):
        yield Finding("error", "gpu", absent, f"unset {VARIABLE}, or install the driver")
        return
    present = devices(environment)
    if not present:
        yield Finding("ok", "gpu", "none on this machine; models run on its CPUs")
        return
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", "gpu", f"{', '.join(present)}: one job each at a time")
    else:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
        remedy = "install the build that fits the driver, see pytorch.org"
        yield Finding("error", "gpu", f"the system has {', '.join(present)}, torch sees none: it {built}", remedy)


def bf16(suite: Suite | ExactSuite, environment: Mapping[str, str]) -> Finding:
    """Say whether the processor multiplies fast in bf16; a warning if the suite asks for it and it does not."""
    if isinstance(suite, Suite) and (problem := bf16_warning(suite, environment)):
        return Finding("warning", "bf16", problem, "leave out `precision: bfloat16`, or take another machine")
    return Finding("ok", "bf16", slow_bf16() or "this processor is fast at it; `precision: bfloat16` trains in it")


def slurm(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check what `snakemake --profile slurm` needs of Slurm."""
    if shutil.which("sbatch") is None:
        yield Finding("ok", "slurm", "not installed; `snakemake` runs on this machine")
        return
    plugin = importlib.metadata.version("snakemake-executor-plugin-slurm")
    config = _output("scontrol", "show", "config")
    if config is None:
        what = "sbatch is installed, but the controller does not answer (scontrol show config)"
        yield Finding("warning", "slurm", what, "start the controller, or run `snakemake` without `--profile slurm`")
        return
    settings = dict(re.findall(r"^(\w+) *= (\S+)", config, re.M))
    age, accounts = int(settings.get("MinJobAge", "0")), "none" not in settings.get("AccountingStorageType", "none")
    what = f"{settings.get('SLURM_VERSION', 'unknown version')}, plugin {plugin}; squeue lists ended jobs for {age} s"
    if age >= MIN_JOB_AGE or (accounts and shutil.which("sacct")):
        yield Finding("ok", "slurm", what + (", sacct lists all" if accounts else ", no accounting"))
    else:
        yield Finding("error", "slurm", f"{what}, and no accounting", f"set MinJobAge to {MIN_JOB_AGE} or more")
    if "SLURM_CONF" in environment:
        what = "SLURM_CONF is set, but the plugin hides it from srun inside jobs"
        yield Finding("warning", "slurm", what, "if jobs fail at once, put a wrapper on PATH that sets it for srun")
    try:
        yield from _site(read_site())
    except UserError as mistake:
        yield Finding("error", "site", str(mistake), f"correct it in site.yaml or the {PREFIX}... variable")


def _site(site: Site) -> Iterator[Finding]:
    """Check that the cluster has what the site asks for."""
    stated = ", ".join(f"{key} {value}" for key, value in site if value is not None)
    partition = ["--partition", site.partition] if site.partition else []
    offered = _output("sinfo", "--noheader", "--format=%P %G", *partition) or ""
    if not offered.strip():
        yield Finding("error", "site", f"there is no partition {site.partition}", "choose one that `sinfo -s` lists")
    elif site.gpu and f"gpu:{site.gpu}" not in offered:
        yield Finding(
            "error", "site", f"no node has a GPU of type {site.gpu}", "choose one that `sinfo -o '%P %G'` lists"
        )
    elif "gpu" not in offered:
        yield Finding(
            "error", "site", f"no node of {site.partition or 'the cluster'} has GPUs", "choose another partition"
        )
    else:
        yield Finding("ok", "site", stated)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _existing(path: Path) -> Path:
    """Return the path, or the nearest parent that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", nargs="*", default=["configs/quickstart.yaml"], help=COMMON["suite"]["help"])


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; return 1 if one of them is an error."""
    suite = read_suite(arguments.suite)
    check_suite_files(Path("results") / suite.name, arguments.suite)
    check_paths(suite, arguments.suite[-1])
    failed = False
    for one in findings(suite, Path("results")):
        failed |= one.level == "error"
        remedy = f"; {one.remedy}" if one.remedy else ""
        print(f"{one.level:8} {one.topic:9} {one.what}{remedy}", flush=True)
    return int(failed)
