"""Change one thing in the package, run the tests that should notice, and list the changes that no test notices.

    python tests/mutations/mutants.py                          # every mutant, and a table by room
    python tests/mutations/mutants.py losses training/loop.py  # two rooms, or modules
    python tests/mutations/mutants.py --csv mutants.csv --resume --markdown docs/mutants.md

`tests/mutations/<room>.yaml` is a list of mutants. Each has these keys:

- file: a module, relative to `workflow/prefdag`;
- old: text that occurs exactly once in the module, or whose `occurrence` (from 1) is stated;
- new: the text that replaces it;
- why: what the change breaks, in one sentence;
- tests: files or node ids, relative to `tests`, of which one must fail;
- explained: why it is right that every test passes (optional).

Third-party libraries are imported once. Every mutant is a fork of this process in which an import hook compiles the
module from the changed text. No file of the repository changes, so an interrupted run leaves nothing behind. A process
that a test starts (`python -m prefdag`, Snakemake, torchrun) reads the unchanged file: `conftest.environment` removes
Python's variables on purpose, so a hook could not reach it. Name tests that call the module in their own process.

The exit code is 1 if a mutant survives without an explanation, if an entry no longer applies, or if its tests fail
without the change.
"""

import argparse
import csv
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workflow/prefdag"
TESTS = ROOT / "tests"
OUTCOMES = ("killed", "timed out", "survived", "explained", "does not apply", "fails unchanged")
FAULTY = ("survived", "does not apply", "fails unchanged")
MINIMUM_SECONDS, TIMES_UNCHANGED = 30.0, 10.0  # a mutant's limit: this, or this many times what its tests take


@dataclass(frozen=True)
class Mutant:
    """One change of the package, and the tests that should notice it."""

    room: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
    occurrence: int | None = None
    explained: str = ""

    @property
    def module(self) -> str:
        """The name under which the module is imported."""
        return ".".join(["prefdag", *Path(self.file).with_suffix("").parts])

    @property
    def path(self) -> Path:
        return PACKAGE / self.file

    def changed(self) -> str:
        """Return the module's text after the change.

        Raises:
            ValueError: the old text is not there as stated, or the new text is not Python.
        """
        if not self.path.is_file():
            raise ValueError(f"{self.file}: there is no such module")
        pieces = self.path.read_text(encoding="utf-8").split(self.old)
        times = len(pieces) - 1
        if not (times == 1 if self.occurrence is None else 1 <= self.occurrence <= times):
            wanted = "once" if self.occurrence is None else f"{self.occurrence} times or more"
            raise ValueError(f"{self.file}: expected {wanted}, but it occurs {times} times: {self.old}")
        place = self.occurrence or 1
        text = self.old.join(pieces[:place]) + self.new + self.old.join(pieces[place:])
        try:
            compile(text, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.file}: not Python after the change: {error.msg}: {self.new}") from None
        return text


@dataclass(frozen=True)
class Result:
    """What became of a mutant: a line of the CSV file."""

    room: str
    file: str
    why: str
    outcome: str
    seconds: float
    note: str  # the test that failed, or the reason


def read_mutants(folder: Path) -> list[Mutant]:
    """Return every mutant of the folder's YAML files, in order."""
    mutants = []
    for path in sorted(folder.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
            tests = tuple(entry.pop("tests"))
            mutants.append(Mutant(room=path.stem, tests=tests, **entry))
    return mutants


class ChangedModule(importlib.machinery.SourceFileLoader):
    """Load one module from a changed text; nothing is written, byte code included."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class Importer:
    """Import hook that is asked first, for one module."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = mutant.module
        self.loader = ChangedModule(self.name, str(mutant.path), mutant.changed())

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.loader.path, loader=self.loader)


class FirstFailure:
    """Pytest plugin that remembers the first test, or test module, that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid.removeprefix("tests/")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = f"{report.nodeid.removeprefix('tests/')} cannot be imported"


@dataclass
class Trial:
    """A forked process that runs the tests of one mutant, or the same tests without the change."""

    mutant: Mutant
    changed: bool
    limit: float
    folder: Path
    pid: int = 0
    start: float = 0.0

    def begin(self) -> None:
        """Fork. The child is the leader of its own group, which a time-out ends as a whole."""
        sys.stdout.flush()
        self.start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.setsid()
                code = self._run_tests()
            finally:
                os._exit(code)

    def _run_tests(self) -> int:
        output = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(self.folder / "hypothesis")
        os.chdir(ROOT)
        if self.changed:
            sys.meta_path.insert(0, Importer(self.mutant))
        first = FirstFailure()
        options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
        options += [
            "--basetemp",
            str(self.folder / "pytest"),
            "--rootdir",
            str(ROOT),
            "-c",
            str(ROOT / "pyproject.toml"),
        ]
        code = pytest.main([*options, *(str(TESTS / name) for name in self.mutant.tests)], plugins=[first])
        (self.folder / "first").write_text(first.name)
        return int(code)

    def ended(self) -> tuple[str, float, str] | None:
        """Return (outcome, seconds, note) once the process has ended or its time is over, else None."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.start
        late = pid == 0 and seconds > self.limit
        if pid == 0 and not late:
            return None
        with suppress(ProcessLookupError):  # what the tests started
            os.killpg(self.pid, signal.SIGKILL)
        if late:
            os.waitpid(self.pid, 0)
            return "timed out", seconds, f"no answer in {self.limit:.0f} s"
        first = self.folder / "first"
        note = first.read_text() if first.exists() else ""
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return "survived", seconds, note
        return "killed", seconds, note or f"pytest ended with {code}"


def run_trials(
    trials: Sequence[tuple[Mutant, bool, float]], processes: int
) -> Iterator[tuple[Mutant, str, float, str]]:
    """Run (mutant, whether the change is made, limit in seconds), a few at a time, and yield each outcome."""
    waiting = list(reversed(trials))
    running: list[Trial] = []
    base = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                mutant, changed, limit = waiting.pop()
                trial = Trial(mutant, changed, limit, Path(tempfile.mkdtemp(dir=base)))
                trial.begin()
                running.append(trial)
            time.sleep(0.01)
            for trial in list(running):
                if outcome := trial.ended():
                    running.remove(trial)
                    shutil.rmtree(trial.folder, ignore_errors=True)
                    yield trial.mutant, *outcome
    finally:
        for trial in running:
            with suppress(ProcessLookupError):
                os.killpg(trial.pid, signal.SIGKILL)
        shutil.rmtree(base, ignore_errors=True)


def try_mutants(mutants: Sequence[Mutant], processes: int = 1) -> Iterator[Result]:
    """Yield the result of every mutant; each set of tests first runs once without a change."""
    applicable = []
    for mutant in mutants:
        try:
            mutant.changed()
            applicable.append(mutant)
        except ValueError as error:
            yield Result(mutant.room, mutant.file, mutant.why, "does not apply", 0.0, str(error))
    for tests in dict.fromkeys(mutant.tests for mutant in applicable):
        members = [mutant for mutant in applicable if mutant.tests == tests]
        ((_, unchanged, seconds, note),) = run_trials([(members[0], False, 600.0)], 1)
        print(f"unchanged      {seconds:5.1f} s  {' '.join(tests)}", flush=True)
        if unchanged != "survived":
            for mutant in members:
                yield Result(mutant.room, mutant.file, mutant.why, "fails unchanged", round(seconds, 1), note)
            continue
        limit = max(MINIMUM_SECONDS, TIMES_UNCHANGED * seconds)
        for mutant, outcome, seconds, note in run_trials([(one, True, limit) for one in members], processes):
            if outcome == "survived" and mutant.explained:
                outcome, note = "explained", mutant.explained
            yield Result(mutant.room, mutant.file, mutant.why, outcome, round(seconds, 1), note)


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table: one line per room, and their sum."""
    rooms = sorted({result.room for result in results})
    lines = ["| room | mutants | " + " | ".join(OUTCOMES) + " |", "|---|" + "---:|" * (1 + len(OUTCOMES))]
    for room in [*rooms, "all"]:
        counts = Counter(result.outcome for result in results if room in (result.room, "all"))
        cells = [str(counts[outcome]) for outcome in OUTCOMES]
        lines.append(f"| {room} | {sum(counts.values())} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Replace the page's table, which is its only one, and the list of explained mutants after it."""
    text = path.read_text(encoding="utf-8")
    start = text.index("| room |")
    page = text[:start] + table(results)
    if explained := [result for result in results if result.outcome == "explained"]:
        page += "\nMutants that no test can or should notice:\n\n"
        page += "".join(f"- `{result.file}`: {result.why} {result.note}\n" for result in explained)
    path.write_text(page, encoding="utf-8")


def chosen(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """Return the mutants of the named rooms and modules; every mutant if there are no names."""
    unknown = set(names) - {mutant.room for mutant in mutants} - {mutant.file for mutant in mutants}
    if unknown:
        rooms = ", ".join(sorted({mutant.room for mutant in mutants}))
        sys.exit(f"no mutants of {', '.join(sorted(unknown))}; name a room ({rooms}) or a module with mutants")
    return [mutant for mutant in mutants if not names or mutant.room in names or mutant.file in names]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ROOM|MODULE", help="what to try (default: everything)")
    parser.add_argument("-j", "--processes", type=int, default=1, metavar="N", help="mutants at a time (default: 1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line per mutant, as each ends")
    parser.add_argument(
        "--resume", action="store_true", help="leave out the mutants that --csv already lists as noticed"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="replace the table of this page")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the YAML files are")
    return parser.parse_args(words)


def read_results(path: Path) -> dict[tuple[str, str, str], Result]:
    """Return the results of an earlier run that need no other one, by room, module and reason."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    results = [Result(**{**row, "seconds": float(row["seconds"])}) for row in rows]
    return {(one.room, one.file, one.why): one for one in results if one.outcome not in FAULTY}


def import_libraries() -> None:
    """Import every module of the package, for the libraries that they import, and forget the package's modules."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem not in ("__init__", "__main__"):
            importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    for name in [name for name in sys.modules if name.partition(".")[0] == "prefdag"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a child's collector need not touch, and so copy, these pages


def main(words: Sequence[str] | None = None) -> int:
    """Try the mutants, print a line for each and the table, and return the exit code."""
    options = arguments(words)
    mutants = chosen(read_mutants(options.folder), options.names)
    earlier = read_results(options.csv) if options.csv and options.resume else {}
    results = [earlier[key] for one in mutants if (key := (one.room, one.file, one.why)) in earlier]
    mutants = [one for one in mutants if (one.room, one.file, one.why) not in earlier]
    sys.path.insert(0, str(ROOT / "workflow"))
    os.environ["OMP_NUM_THREADS"] = "1"
    import_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the forks, too
    with open(options.csv or os.devnull, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, Result.__annotations__)
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
        for result in try_mutants(mutants, options.processes):
            results.append(result)
            writer.writerow(asdict(result))
            stream.flush()
            place = f"{result.outcome:<14} {result.seconds:5.1f} s  {result.room}: {result.file}"
            print(f"{place}: {result.why} [{result.note}]", flush=True)
    print("\n" + table(results))
    faulty = [result for result in results if result.outcome in FAULTY]
    for result in faulty:
        print(f"{result.outcome}: {result.room}: {result.file}: {result.why} {result.note}")
    if options.markdown:
        write_table(options.markdown, results)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
