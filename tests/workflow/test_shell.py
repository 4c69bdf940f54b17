"""A shell interprets nothing of a user's: bad names are refused, every other value arrives as it was written."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from conftest import MINI, Project, checkout, environment
from prefdag.config.loading import merge
from prefdag.config.suite import resolve
from prefdag.errors import UserError

NASTY = [
    "a; touch ran",
    "$(touch ran)",
    "`touch ran`",
    "a && touch ran",
    "a | touch ran",
    "a > ran",
    "a\ntouch ran",
    "it's",
    'say "so"',
    "'; touch ran; '",
    '"; touch ran; "',
    "two words",
    " before",
    "../up",
    "a/../../up",
    "/absolute",
    "{input}",
    "{{twice}}",
    "$HOME",
    "~",
    "*",
    "-rf",
    "\\",
    "über",
    "a\tb",
    "!!",
    "#",
    "",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_bad_name_is_refused_by_a_sentence(name: str):
    """Names become folders, rules' wildcards and words of commands."""
    for where, changes in {
        "name": {"name": name},
        "runs": {"runs": [{"name": name, "method": "dpo"}]},
        "grid": {"runs": [], "grid": [{"name": name, "method": "dpo", "beta": [0.1, 0.2]}]},
    }.items():
        with pytest.raises(UserError) as mistake:
            resolve(merge(yaml.safe_load(MINI), changes), "configs/mini.yaml")
        rows = 2 if where == "grid" else 1
        sentences = str(mistake.value).splitlines()
        assert len(sentences) == rows and all(one.startswith("configs/mini.yaml: ") for one in sentences), where


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Clone the project into a folder whose name a shell would interpret."""
    folder = tmp_path_factory.mktemp("shell") / 'it\'s; touch ran; "$(touch ran)" `touch ran` {input} über'
    return checkout(folder)


def suite(project: Project, path: str, **changes: object) -> str:
    (project.folder / path).parent.mkdir(exist_ok=True)
    (project.folder / path).write_text(yaml.safe_dump(merge(yaml.safe_load(MINI), changes)))
    return path


def dry(project: Project, path: str) -> str:
    done = project.snakemake("-n", "-p", suite=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def configs(output: str) -> dict[str, dict]:
    """Return each stage's config as a shell would pass it."""
    config_of = {}
    for command in re.findall(r"^Shell command: (.*python -m prefdag.*)$", output, re.M):
        words = shlex.split(command)
        if "--config" in words:
            config_of[words[words.index("prefdag") + 1]] = json.loads(words[words.index("--config") + 1])
    return config_of


def test_values_arrive_as_they_were_written(project: Project):
    label, source = "\n".join(NASTY), "\n".join(name for name in NASTY if "/" not in name and name not in ("~", "*"))
    folder = project.folder / source
    folder.mkdir()
    rows = [json.dumps({"prompt": f"p {n}", "chosen": f"c {n}", "rejected": f"r {n}"}) for n in range(40)]
    (folder / "it's; a $(touch ran).jsonl").write_text("\n".join(rows))
    data = {"source": source, "world": None, "train": "it's; a $(touch ran).jsonl"}
    path = suite(
        project,
        "configs/values.yaml",
        report={"reward_label": label},
        data=data,
        prepare={"adapter": "pairs"},
        pairs=None,
    )
    config_of = configs(dry(project, path))
    assert config_of["report"]["report"]["reward_label"] == label
    assert (config_of["fetch"]["data"]["source"], config_of["fetch"]["data"]["train"]) == (source, data["train"])


def test_the_path_of_a_suite_is_one_word(project: Project):
    path = suite(
        project,
        'configs/a; touch ran $(touch ran) it\'s "so" über.yaml',
        data={"source": "hub:a/b", "train": "x", "world": None},
        prepare={"adapter": "pairs"},
        pairs=None,
    )
    output = dry(project, path)
    (command,) = re.findall(r"^Shell command: python -m prefdag lock (.*)$", output, re.M)
    assert shlex.split(command) == [path]


def test_jobs_run_in_a_folder_of_any_name(project: Project):
    """Run two jobs through bash from a suite file with a nasty name, and nothing else."""
    path = suite(project, 'configs/$(touch ran) `touch ran`; touch ran "über" it\'s.yaml')
    done = project.snakemake("results/mini/prepare/demonstrations/manifest.json", suite=path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(project.folder.parent.rglob("ran"))


def test_tools_take_any_path(project: Project):
    path = suite(project, "configs/{x} $(touch ran).yaml")
    command = [sys.executable, "-m", "prefdag", "show", path]
    inside = {**environment(), "PYTHONPATH": str(project.folder / "workflow")}
    done = subprocess.run(command, cwd=project.folder, env=inside, capture_output=True, text=True)
    assert yaml.safe_load(done.stdout)["name"] == "mini"
    assert not list(project.folder.parent.rglob("ran"))
