"""Each stage's sources are the files that it needs: an edit elsewhere in the package must not rerun it."""

import subprocess
import sys

import pytest

from conftest import ROOT, environment
from prefdag.provenance.sources import PACKAGE, sources

# The number of files of each stage, `__init__.py` aside. A number may fall and must not grow.
CEILINGS = {
    "best_of_n": 16, "choose": 16, "classifier": 18, "discriminator": 66, "evaluate_reward": 58, "exact": 49,
    "fetch": 38, "generate": 54, "gold": 53, "hidden_map": 38, "judge": 28, "online": 124, "pairing": 18, "pairs": 72,
    "policy": 100, "preference": 66, "prepare": 41, "pretrain": 59, "rating": 25, "reference": 37, "report": 77,
    "reward": 64, "reward_variant": 65, "score": 65, "selected": 13, "sft": 44,
}  # fmt: skip
# Imported inside a function: only a suite whose reward is a classifier runs them.
SCORING = ("gold", "online", "pairs", "policy", "score")
LAZY = {stage: {"prefdag.rewards.classifier", "prefdag.config.classifier"} for stage in SCORING}
LAZY["fetch"] = {
    "prefdag.models.merging",
    "prefdag.models.resizing",
    "prefdag.models.gguf_file",
}  # only for a model that changes
# Forked for each stage after the slow imports of other packages, so that fifteen stages take the time of one.
IMPORT_EACH = """
import os, sys
from importlib import import_module

for name in ("torch", "transformers", "pandas"):
    import_module(name)
for stage in sys.argv[1:]:
    if os.fork() == 0:
        import_module(f"prefdag.stages.{stage}")
        print(stage, *(name for name in sys.modules if name.startswith("prefdag.")), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, stage
"""


def modules(stage: str) -> set[str]:
    """Dotted names of a stage's modules; packages, whose `__init__.py` is empty, left out."""
    files = [path for path in sources(stage) if path.suffix == ".py" and path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files}


@pytest.mark.parametrize("stage", CEILINGS)
def test_the_sources_of_a_stage_do_not_grow(stage: str):
    assert sum(path.name != "__init__.py" for path in sources(stage)) <= CEILINGS[stage]


def test_packages_are_empty():
    """A stage counts the `__init__.py` of each package that it imports from: code there would belong to every stage."""
    assert not [path for path in PACKAGE.rglob("__init__.py") if path.stat().st_size]


def test_every_stage_has_a_ceiling():
    assert set(CEILINGS) == {path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py")}


def test_a_stage_imports_all_of_its_sources_and_nothing_else():
    """Static and imported modules agree: nothing is missed, and nothing is counted that never runs."""
    inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
    command = [sys.executable, "-c", IMPORT_EACH, *CEILINGS]
    lines = subprocess.run(command, env=inside, capture_output=True, text=True, check=True).stdout.splitlines()
    imported = {stage: set(names) for stage, *names in map(str.split, lines)}
    packages = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert imported.keys() == CEILINGS.keys()
    for stage, names in imported.items():
        assert names - packages == modules(stage) - LAZY.get(stage, set()), stage
