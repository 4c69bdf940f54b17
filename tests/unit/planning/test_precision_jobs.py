"""Whether the processor is fast in bf16, and the jobs of a suite that states a precision."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefdag.cli import doctor
from prefdag.config.jobs import config_of
from prefdag.config.suite import Suite, read_ordinary_suite, resolve
from prefdag.planning import machine
from prefdag.planning.graph import inputs_of
from prefdag.planning.machine import bf16_warning, slow_bf16

ROOT = Path(__file__).parents[3]
FLAGS = {"avx512f avx512_bf16": True, "avx512f amx_bf16": True, "fpu avx2": False}


def suite_with(**sections: Any) -> Suite:
    """The quickstart with keys of sections changed, and one more row of DPO."""
    import yaml

    values = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    for name, keys in sections.items():
        values[name] = keys if name == "runs" else {**values[name], **keys}
    if "runs" in sections:
        del values["generate"]["variants"]  # of runs that are replaced
    resolved = resolve(values, "configs/x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


@pytest.mark.parametrize(("flags", "is_fast"), FLAGS.items())
def test_the_processors_flags_say_whether_bf16_is_fast(flags: str, is_fast: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert (slow_bf16(tmp_path / "cpuinfo") is None) == is_fast


def test_nothing_is_said_where_the_system_describes_no_processor(tmp_path: Path) -> None:
    assert slow_bf16(tmp_path / "absent") is None


def test_a_suite_that_asks_for_bf16_on_a_slow_processor_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "slow_bf16", lambda: "slow")
    plain, half = suite_with(), suite_with(sft={"precision": "bfloat16"})
    assert bf16_warning(plain, {}) is None and bf16_warning(half, {"PREFDAG_GPUS": ""}) == "slow"
    assert doctor.bf16(half, {"PREFDAG_GPUS": ""}).level == "warning"


def test_an_unstated_precision_is_in_no_job_of_the_shipped_suite() -> None:
    suite = read_ordinary_suite([str(ROOT / "configs/quickstart.yaml")])
    jobs = [("pretrain", None), ("sft", None), ("reward", None), ("reference", "comparisons")]
    jobs += [("preference", "preferred-ft"), ("policy", "rloo"), ("online", "online-dpo")]
    assert not [stage for stage, name in jobs if "precision" in config_of(suite, stage, name)]


def test_a_stated_precision_is_in_the_jobs_and_names_a_cache_of_its_own() -> None:
    """Two rows share the section's cache in bf16; the row in float32 reads another."""
    rows = [{"name": name, "method": "dpo", "beta": 0.1} for name in ("a", "b", "c")]
    rows[2]["precision"] = "float32"
    suite = suite_with(preference={"precision": "bfloat16"}, runs=rows)
    folders = {name: inputs_of(suite, "preference", name)["reference"] for name in "abc"}
    in_half = ["reference/comparisons-bfloat16"]
    assert folders == {"a": in_half, "b": in_half, "c": ["reference/comparisons-float32"]}
    assert inputs_of(suite, "reference", "comparisons-bfloat16")["comparisons"] == ["prepare/comparisons"]
    assert json.loads(config_of(suite, "reference", "comparisons-bfloat16"))["precision"] == "bfloat16"
    assert json.loads(config_of(suite, "preference", "a"))["preference"]["precision"] == "bfloat16"
