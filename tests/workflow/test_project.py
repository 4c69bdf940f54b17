"""The project itself: pins, ceilings, commands, and mistakes in a suite as Snakemake meets them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import yaml

from conftest import ROOT, checkout, environment, not_skipped, reads_golden_values, tracked_files

PACKAGE = ROOT / "workflow/prefdag"


def test_conda_and_pip_have_the_same_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[-1]["pip"] == [*pinned, "--editable ."], "Snakemake finds its logger plugin in the installed package"
    assert all("==" in pin for pin in pinned)
    assert pinned[0].startswith("torch=="), "torch comes before the packages that depend on it"


def test_golden_tests_cannot_be_skipped():
    """A skip of a test or a whole module that reads the peers' values fails the run; others may say why they skip."""
    modules = {path.name: path for path in (ROOT / "tests").rglob("test_*.py") if reads_golden_values(path)}
    assert set(modules) == {"test_oracles.py", "test_logprobs.py", "test_on_policy.py", "test_discriminator.py"}
    for path in (*modules.values(), Path(__file__)):
        report = SimpleNamespace(skipped=True, outcome="skipped", nodeid="one", longrepr="why")
        assert not_skipped(report, path).outcome == ("skipped" if path == Path(__file__) else "failed")
    passed = SimpleNamespace(skipped=False, outcome="passed", nodeid="one", longrepr=None)
    assert not_skipped(passed, modules["test_oracles.py"]).outcome == "passed"


def test_every_stage_has_one_word():
    """Rule file, module and schema of a stage have its name."""
    stages = {path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py")}
    assert stages == {path.stem for path in (ROOT / "workflow/rules").glob("*.smk")} - {"common", "services", "targets"}
    # A policy's settings are those of the section `online`, a folder.
    schemas = {path.stem for path in (PACKAGE / "config").rglob("*")}
    # `choose` and `selected` read the section `select`.
    assert stages - {"fetch", "policy", "choose", "selected"} <= schemas


def test_a_mistake_in_a_suite_is_one_sentence(tmp_path: Path):
    """Through Snakemake: the sentence, exit code 2, no traceback, nothing started."""
    project = checkout(tmp_path / "clone")
    project.edit("configs/mini.yaml", "name: dpo, method: dpo, beta: 0.1}", "name: dpo, method: dpo, beta: -1}")
    done = project.snakemake()
    assert done.returncode == 2
    sentence = "prefdag: configs/mini.yaml: runs.dpo.beta: expected a number above 0, got -1"
    assert sentence in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert not list((project.folder / "results").glob("*"))


def test_nothing_heavy_is_imported_while_parsing():
    """The Snakefile is parsed in every cluster job."""
    code = "import sys, prefdag.config.jobs, prefdag.config.suite, prefdag.provenance.sources\n"
    code += "print([name for name in ('torch', 'transformers', 'mlflow', 'pandas', 'numpy') if name in sys.modules])"
    inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run([sys.executable, "-c", code], env=inside, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_path_of_a_machine_and_no_index_is_tracked_files():
    forbidden = re.compile(r"(?<![\w.])/(?:work|root|home)[/]|index[-]url")
    for path in tracked_files():
        if path.suffix not in (".png", ".svg"):
            assert not forbidden.search(path.read_text(errors="replace")), path
