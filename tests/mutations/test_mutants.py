"""The list of mutants still fits the code, and the runner reports what it should; no mutant of the list is run."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mutants import TESTS, Mutant, Result, read_mutants, table, write_table

FOLDER = Path(__file__).parent
MUTANTS = read_mutants(FOLDER)


@pytest.mark.parametrize("room", sorted({mutant.room for mutant in MUTANTS}))
def test_every_mutant_applies_and_its_tests_exist(room: str) -> None:
    wrong = []
    for mutant in MUTANTS:
        if mutant.room != room:
            continue
        try:
            assert mutant.changed() != (mutant.path).read_text(encoding="utf-8"), "the change changes nothing"
        except (ValueError, AssertionError) as error:
            wrong.append(str(error))
        for node in mutant.tests:
            name, *functions = node.split("::")
            path = TESTS / name
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            parts = [function.partition("[")[0] for function in functions]
            if not text or any(f"def {part}(" not in text and f"class {part}" not in text for part in parts):
                wrong.append(f"{mutant.file}: there is no test {node}")
        if not mutant.why.endswith(".") or not mutant.tests:
            wrong.append(f"{mutant.file}: needs tests, and a `why` that is a sentence: {mutant.why}")
    assert not wrong, "\n".join(wrong)


def test_there_are_enough_and_none_twice() -> None:
    assert len(MUTANTS) >= 150
    names = [(mutant.file, mutant.old, mutant.new, mutant.occurrence) for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    reasons = [(mutant.room, mutant.file, mutant.why) for mutant in MUTANTS]
    assert len(set(reasons)) == len(reasons), "--resume needs another `why` for each mutant of a module"


SEED_TEST = """
from prefdag.seeds import generator

def test_streams_differ():
    assert generator(0, "a").random() != generator(0, "b").random()
"""
# The libraries are not imported first: this module needs NumPy alone.
RUN = """
import sys, mutants
mutants.import_libraries = lambda: None
mutants.MINIMUM_SECONDS, mutants.TIMES_UNCHANGED = 1.0, 2.0
sys.exit(mutants.main(sys.argv[1:]))
"""


def run(folder: Path, *entries: dict, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run mutants of `prefdag.seeds` against the test above."""
    (folder / "test_seed.py").write_text(SEED_TEST)
    filled = [{"file": "seeds.py", "tests": [str(folder / "test_seed.py")], **entry} for entry in entries]
    (folder / "toy.yaml").write_text(yaml.safe_dump(filled))
    command = [sys.executable, "-c", RUN, "--folder", str(folder), *options]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)


def test_each_outcome_is_reported(tmp_path: Path) -> None:
    source = (FOLDER.parents[1] / "workflow/prefdag/seeds.py").read_text()
    old = "named_seed(seed, *names)))"
    first = {"old": old, "new": "0))", "why": "Streams would be one."}
    second = {"old": old, "new": "named_seed(seed + 1, *names)))", "why": "Nothing would fail."}
    third = {"old": old, "new": "__import__('time').sleep(999)))", "why": "It would hang."}
    fourth = {"old": "this text is gone", "new": "", "why": "It is gone."}
    result = run(tmp_path, first, second, third, fourth, options=("--csv", str(tmp_path / "mutants.csv")))
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("killed") and "one. [" in line and "test_streams_differ" in line for line in lines)
    assert any(line.startswith("timed out") and "no answer in" in line for line in lines)
    assert "| toy | 4 | 1 | 1 | 1 | 0 | 1 | 0 |" in lines
    assert any(line.startswith("survived: toy: seeds.py: Nothing would fail.") for line in lines)
    assert any(line.startswith("does not apply: toy: seeds.py: It is gone.") for line in lines)
    again = run(tmp_path, first, {**second, "explained": "It only looks like a change."}, third,
                options=("--csv", str(tmp_path / "mutants.csv"), "--resume"))  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Streams would be one." not in again.stdout  # its result is the file's
    assert "| toy | 3 | 1 | 1 | 0 | 1 | 0 | 0 |" in again.stdout.splitlines()
    assert (FOLDER.parents[1] / "workflow/prefdag/seeds.py").read_text() == source


def test_tests_that_fail_without_the_change_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text("def test_wrong():\n    assert False\n")
    entry = {"old": "import numpy as np", "new": "import numpy as np ", "why": "No matter."}
    result = run(tmp_path, {**entry, "tests": [str(tmp_path / "test_wrong.py")]})
    assert result.returncode == 1
    assert any(line.startswith("fails unchanged: toy") for line in result.stdout.splitlines())


def test_an_occurrence_and_a_change_that_is_not_python() -> None:
    mutant = Mutant("toy", "seeds.py", "import", "import ", "x.", ("unit",), occurrence=1)
    assert mutant.changed().count("import  ") == 1
    with pytest.raises(ValueError, match="expected 99 times or more"):
        Mutant("toy", "seeds.py", "import", "import ", "x.", ("unit",), occurrence=99).changed()
    with pytest.raises(ValueError, match="not Python"):
        Mutant("toy", "seeds.py", "import numpy", "import import", "x.", ("unit",)).changed()


def test_the_table_replaces_the_pages(tmp_path: Path) -> None:
    page = tmp_path / "mutants.md"
    page.write_text("# Mutants\n\nText.\n\n| room | old |\n|---|\n")
    results = [Result("a", "x.py", "One.", "killed", 1.0, "t"), Result("b", "y.py", "Two.", "explained", 1.0, "Why.")]
    write_table(page, results)
    text = page.read_text()
    assert text.startswith("# Mutants\n\nText.\n\n" + table(results)) and "old" not in text
    assert "| all | 2 | 1 | 0 | 0 | 1 | 0 | 0 |" in text and "- `y.py`: Two. Why.\n" in text
