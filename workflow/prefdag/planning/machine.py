"""Check, from Snakemake's command line, that this machine has what a run asks for: Slurm, GPUs."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefdag.config.suite import Suite
from prefdag.distributed.gpu_lease import VARIABLE, devices, listed_devices
from prefdag.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
FAST_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's name
DRY_RUN = re.compile(r"--dry-?run|-[A-Za-z]*n[A-Za-z]*")  # Snakemake itself knows it only after the rules are read


def is_dry_run(words: Sequence[str]) -> bool:
    """Return whether Snakemake's command line asks for a dry run."""
    return any(map(DRY_RUN.fullmatch, words))


def check_machine(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Check that Slurm is installed if jobs are to go there, and say on stderr if PREFDAG_GPUS names absent GPUs.

    Args:
        words: Snakemake's command line.
        environment: the environment's variables.

    Raises:
        UserError: there is no Slurm: every job would fail, and be tried again.
    """
    if asks_for_slurm(words, environment):
        if not is_dry_run(words) and (problem := _problem_of_slurm()):
            raise UserError(
                f"executor slurm: {problem}; run on a login node of the cluster, or without `--profile slurm`"
            )
    elif absent := absent_gpus(environment):
        print(f"prefdag: {absent}", file=sys.stderr)


def _problem_of_slurm() -> str | None:
    """Return why no job could be submitted, None if Slurm answers."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch on this machine"
    try:
        answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"sinfo does not answer ({type(error).__name__})"
    return None if answer.returncode == 0 else "Slurm's controller does not answer (`sinfo` fails)"


def absent_gpus(environment: Mapping[str, str]) -> str | None:
    """Return a sentence if PREFDAG_GPUS names GPUs on a machine where nvidia-smi lists none."""
    if not environment.get(VARIABLE, "").strip() or not devices(environment) or listed_devices():
        return None
    return (
        f"{VARIABLE} names {environment[VARIABLE]}, but nvidia-smi lists no GPU on this machine: models run on its CPUs"
    )


def slow_bf16(cpuinfo: Path = CPUINFO) -> str | None:
    """Return a sentence if this machine's processor lists no instructions for products of bf16; None if it does.

    cpuinfo: Linux's description of the processors; no warning where there is none.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M)).split())
    if not flags or flags & FAST_BF16:
        return None
    return "this processor has neither AVX512-BF16 nor AMX: bf16 is slower than float32 on it"


def asks_for_bf16(suite: Suite) -> bool:
    """Return whether a training of a suite states `precision: bfloat16`."""
    trainings = (suite.pretrain, suite.sft, suite.reward, *(run.preference for run in suite.trained))
    return any(one is not None and one.precision == "bfloat16" for one in trainings)


def bf16_warning(suite: Suite, environment: Mapping[str, str]) -> str | None:
    """Return a sentence if a suite asks for bf16 and its models would run on a processor that is slow at it."""
    return slow_bf16() if asks_for_bf16(suite) and not devices(environment) else None


def asks_for_slurm(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether Snakemake's command line, or a profile that it names, chooses the executor slurm."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--executor", "-e")
    parser.add_argument("--profile")
    stated, _ = parser.parse_known_args([word for word in words if word != "--"])
    if stated.executor is not None:
        return bool(stated.executor == "slurm")
    profile = stated.profile or environment.get("SNAKEMAKE_PROFILE")
    return profile is not None and any(_executor_of(folder) == "slurm" for folder in _folders(profile))


def _folders(profile: str) -> list[Path]:
    """Return where Snakemake looks for a profile: a folder by its path, below profiles/, or the user's."""
    return [Path(profile), Path("profiles", profile), Path.home() / ".config/snakemake" / profile]


def _executor_of(folder: Path) -> str | None:
    path = folder / "config.yaml"
    match = re.search(r"^executor:\s*[\"']?(\w+)", path.read_text(), re.M) if path.is_file() else None
    return match[1] if match else None
