"""A cluster's settings: from the environment over `site.yaml`, into what Slurm is asked for; no edit of a rule."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Project, checkout, environment
from prefdag.config.site import PREFIX, Site, read_site
from prefdag.errors import UserError

EXAMPLE = ROOT / "profiles/slurm/site.example.yaml"


def test_the_example_states_every_key_and_is_valid():
    assert set(yaml.safe_load(EXAMPLE.read_text())) == set(Site.model_fields)
    assert read_site(EXAMPLE, {}).gpu == "a100"


def test_the_environment_stands_over_the_file_and_both_over_defaults(tmp_path: Path):
    path = tmp_path / "site.yaml"
    assert read_site(path, {}) == Site()
    path.write_text("account: ours\npartition: gpu\nminutes: 60\n")
    site = read_site(path, {"PREFDAG_SLURM_PARTITION": "a,b", "PREFDAG_SLURM_NOTICE": "30", "PREFDAG_SLURM_QOS": ""})
    assert site == Site(account="ours", partition="a,b", minutes=60, notice=30)


@pytest.mark.parametrize("value", ["a b", "a;id", "$(id)", "a'b", "-x", "\n", '"', "`id`"])
@pytest.mark.parametrize("key", ["account", "partition", "qos", "gpu"])
def test_what_is_no_name_is_refused(key: str, value: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"PREFDAG_SLURM_{key.upper()}: {key}: "):
        read_site(tmp_path / "site.yaml", {PREFIX + key.upper(): value})


def test_a_mistake_in_the_file_names_file_and_key(tmp_path: Path):
    (tmp_path / "site.yaml").write_text("acount: ours\n")
    with pytest.raises(UserError, match=r"site.yaml: acount: unknown key"):
        read_site(tmp_path / "site.yaml", {})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return checkout(tmp_path_factory.mktemp("site") / "prefdag")


def planned(project: Project, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "-n", "-p", "--configfile", "configs/mini.yaml"]
    inside = {**environment(), **variables}
    return subprocess.run(command, cwd=project.folder, env=inside, capture_output=True, text=True)


def resources(said: str) -> dict[str, dict[str, str]]:
    """Stage -> resource -> value, as a dry run prints them."""
    jobs = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)\n", said, re.M)
    return {stage: dict(pair.split("=", 1) for pair in text.split(", ")) for stage, text in jobs}


def test_nothing_stated_asks_slurm_for_nothing_of_the_site(project: Project):
    done = planned(project)
    assert done.returncode == 0, done.stderr
    asked = resources(done.stdout)
    assert {stage for stage in asked if asked[stage].get("gpu") == "1"} == {
        "pretrain", "sft", "pairs", "reward", "reference", "preference", "generate", "score",
    }  # fmt: skip
    assert not {"slurm_account", "slurm_partition", "gpu_model"} & set().union(*asked.values())
    assert (asked["preference"]["mem_mb"], asked["preference"]["runtime"]) == ("32000", "240")
    assert (asked["judge"]["mem_mb"], asked["judge"]["runtime"]) == ("8000", "60")
    assert asked["judge"]["slurm_extra"] == "--signal=TERM@120"


def test_a_site_reaches_every_job_without_an_edit(project: Project):
    path = project.folder / "profiles/slurm/site.yaml"
    path.write_text(EXAMPLE.read_text())
    done = planned(project, PREFDAG_SLURM_MINUTES="100", PREFDAG_SLURM_ACCOUNT="theirs")
    path.unlink()
    assert done.returncode == 0, done.stderr
    asked = resources(done.stdout)
    for stage in asked:
        assert (asked[stage]["slurm_account"], asked[stage]["slurm_partition"]) == ("theirs", "gpu")
        assert asked[stage].get("gpu_model") == ("a100" if "gpu" in asked[stage] else None)
    assert (asked["preference"]["runtime"], asked["judge"]["runtime"]) == ("100", "60")


def test_a_mistake_in_the_site_is_one_sentence(project: Project):
    done = planned(project, PREFDAG_SLURM_MINUTES="an hour")
    assert done.returncode == 2
    sentence = 'prefdag: PREFDAG_SLURM_MINUTES: minutes: expected a whole number, got "an hour"'
    assert done.stderr.splitlines()[-1] == sentence
    assert "Traceback" not in done.stderr
