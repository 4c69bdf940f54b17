"""`prefdag why [TARGET ...] [--configfile ...]`: which jobs would run, and what each of them has to do it for."""

import argparse
import subprocess
import sys

from prefdag.reasons import explained, planned


def main(argv: list[str]) -> int:
    """Ask Snakemake for a dry run, and print every job with what changed since its outputs were made."""
    parser = argparse.ArgumentParser(prog="prefdag why", description=main.__doc__)
    parser.add_argument(
        "target", nargs="*", help="files to make, as for snakemake; the whole suite where none is named"
    )
    parser.add_argument("--configfile", nargs="+", default=[], help="as for snakemake")
    arguments = parser.parse_args(argv)
    configfile = ["--configfile", *arguments.configfile] if arguments.configfile else []
    command = [sys.executable, "-m", "snakemake", *arguments.target, "--dry-run", "--printshellcmds", "--quiet", "host"]
    done = subprocess.run([*command, *configfile], capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, end="", file=sys.stderr)
        return done.returncode
    jobs = planned(done.stdout + done.stderr)
    if not jobs:
        print("nothing would run")
    for job, reasons in explained(jobs):
        print(job.title, *reasons, sep="\n  ")
    return 0
