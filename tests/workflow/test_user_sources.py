"""A loss in a user's Python file: which files count as its code, and which runs depend on them."""

import json
from pathlib import Path

import pytest

from conftest import MINI, checkout
from conftest import OWN_LOSS as DPO
from conftest import OWN_METHOD as METHOD
from prefdag.config import jobs
from prefdag.config.objectives import objective
from prefdag.config.suite import Suite, read_suite
from prefdag.errors import UserError
from prefdag.losses.registry import loss_of
from prefdag.planning.graph import jobs_of
from prefdag.provenance.sources import code_digests, sources
from registry import pair

IMPORTING = DPO.replace("from prefdag.models.logprobs import margin", "from own_margins import margin")
MARGINS = "def margin(values):\n    return values[:, 0] - values[:, 1]\n"


def test_imported_neighbours_are_counted(workdir: Path, tmp_path: Path):
    """The lecture's 0.5544; a module in the same folder counts only if it is imported."""
    folder = workdir / "losses of mine"
    folder.mkdir()
    (folder / "my_losses.py").write_text(IMPORTING)
    (folder / "own_margins.py").write_text(MARGINS)
    (folder / "other.py").write_text("raise SystemExit('this file was run')\n")
    loss = objective({"method": f"losses of mine/{METHOD}", "beta": 0.1}, "tests", "row")
    counted = set(sources("preference", loss.user_files())) - set(sources("preference"))
    assert counted == {Path("losses of mine/my_losses.py"), Path("losses of mine/own_margins.py")}
    assert loss_of(loss)(pair(-10, -15), reference=pair(-12, -14)).item() == pytest.approx(0.554355, abs=1e-6)


@pytest.mark.parametrize("folder", [".", "configs"])
def test_what_is_not_counted_cannot_be_imported(folder: str, workdir: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither in its folder by a name made at run time, nor in the working directory, where `python -m` looks."""
    monkeypatch.syspath_prepend(str(workdir))
    (workdir / "configs").mkdir()
    (workdir / folder / "uncounted.py").write_text("")
    text = "__import__('un' + 'counted')" if folder == "configs" else "import uncounted"
    (workdir / "configs/my_losses.py").write_text(f"{text}\n{DPO}")
    with pytest.raises(UserError, match=r"importing it raised ModuleNotFoundError: No module named 'uncounted'"):
        loss_of(objective({"method": f"configs/{METHOD}"}, "tests", "row"))


def test_a_file_counts_what_it_imports_from_the_package(workdir: Path):
    (workdir / "my_losses.py").write_text(DPO + "from prefdag.data import detokenize\n")
    counted = set(sources("preference", [Path("my_losses.py")])) - set(sources("preference"))
    assert {path.name for path in counted} == {"my_losses.py", "detokenize.py"}


def test_the_code_digest_is_what_the_files_say(workdir: Path):
    (workdir / "my_losses.py").write_text(IMPORTING)
    (workdir / "own_margins.py").write_text(MARGINS)

    def digest() -> dict[str, str]:
        return code_digests("preference", [Path("my_losses.py")])

    before = digest()
    (workdir / "my_losses.py").write_text("# a comment\n" + IMPORTING.replace("Rafailov et al.", "Rafailov and others"))
    assert digest() == before
    (workdir / "own_margins.py").write_text(MARGINS.replace("-", "+"))
    assert digest() != before
    (workdir / "own_margins.py").write_text(MARGINS)
    (workdir / "my_losses.py").write_text(IMPORTING.replace("return -", "return 2 * -"))
    assert digest() != before
    assert code_digests("preference") == code_digests("preference", []) != before


def test_an_edit_of_the_byte_code_kind_is_seen(workdir: Path):
    """Same second, same size: Python's cache would not notice; D = 3, beta 1 and then 2."""
    for beta, expected in ((1, 0.048587), (2, 0.002476)):
        (workdir / "my_losses.py").write_text(DPO.replace("logsigmoid(beta", f"logsigmoid({beta}"))
        value = loss_of(objective({"method": METHOD}, "tests", "row"))(pair(-10, -15), reference=pair(-12, -14))
        assert value.item() == pytest.approx(expected, abs=1e-6)


def suite_in(folder: Path, rows: str = f"runs:\n  - {{name: mine, method: {METHOD}}}\n") -> Suite:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_losses.py").write_text(DPO)
    (folder / "suite.yaml").write_text(MINI.partition("runs:")[0] + rows)
    return read_suite([str(folder / "suite.yaml")])


def test_a_plan_does_not_depend_on_the_projects_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    configs = []
    for clone in ("one", "two"):
        (tmp_path / clone).mkdir()
        monkeypatch.chdir(tmp_path / clone)
        configs.append(jobs.config_of(suite_in(Path("configs")), "preference", "mine"))
        absolute = suite_in(tmp_path / clone / "configs")  # as `prefdag show` may be called
        assert jobs.config_of(absolute, "preference", "mine") == configs[-1]
        assert jobs.user_files_of(absolute, "preference", "mine") == (Path("configs/my_losses.py"),)
    assert configs[0] == configs[1]
    assert json.loads(configs[0])["objective"] == {"method": "configs/my_losses.py:my_dpo", "beta": 0.1}


def test_the_path_is_taken_from_the_file_that_states_the_row(workdir: Path):
    """Whether that suite is extended by another or has another merged over it; and a grid's rows have plain names."""
    suite_in(Path("configs"), f"grid:\n  - {{method: {METHOD}, beta: [1, 2]}}\n")
    Path("configs/local").mkdir()
    Path("configs/local/over.yaml").write_text("name: over\n")
    Path("configs/local/more.yaml").write_text("extends: ../suite.yaml\nname: more\n")
    for files in (["configs/suite.yaml", "configs/local/over.yaml"], ["configs/local/more.yaml"]):
        suite = read_suite(files)
        assert [run.name for run in suite.runs] == ["my_dpo-beta1", "my_dpo-beta2"]
        assert {run.objective.method for run in suite.runs} == {"configs/my_losses.py:my_dpo"}


def test_only_its_own_run_counts_the_file_as_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And what the file imports; a mistake in it is one sentence of Snakemake's plan."""
    project = checkout(tmp_path / "clone")
    project.edit("configs/mini.yaml", "runs:\n", f"runs:\n  - {{name: mine, method: {METHOD}}}\n")
    (project.folder / "configs/my_losses.py").write_text(IMPORTING)
    (project.folder / "configs/own_margins.py").write_text(MARGINS)
    monkeypatch.chdir(project.folder)
    suite = read_suite(["configs/mini.yaml"])
    codes = {}
    for folder in jobs_of(suite):
        stage, _, name = folder.partition("/")
        codes[folder] = code_digests(stage, jobs.user_files_of(suite, stage, name or None))
    assert len(codes) > 20
    for file in ("configs/my_losses.py", "configs/own_margins.py"):
        assert [folder for folder, code in codes.items() if file in code] == ["preference/mine"]
    project.edit("configs/my_losses.py", "reference, beta", "reference, *, gamma, beta")
    done = project.snakemake("-n", "-p")
    sentence = "configs/mini.yaml: runs.mine.method: configs/my_losses.py: my_dpo: gamma needs a type"
    assert done.returncode == 2 and f"prefdag: {sentence}" in done.stderr and "Traceback" not in done.stderr
