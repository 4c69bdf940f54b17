"""`prefdag plan`: the arithmetic by hand, and the table of every shipped suite of a paper."""

import json
from pathlib import Path

import pytest
import yaml
from test_suites import PAPERS

from conftest import MINI, ROOT
from prefdag.cli.main import main
from prefdag.cli.plan import BANDWIDTH, FLOPS, job_costs, sized
from prefdag.config.loading import merge
from prefdag.config.suite import Size, Suite, resolve

SIZE = {
    "parameters": 1e9,
    "layers": 10,
    "hidden_size": 100,
    "comparisons": 600,
    "prompt_tokens": 10,
    "response_tokens": 20,
}


def suite(**changes: object) -> Suite:
    return resolve(merge(yaml.safe_load(MINI), {"size": SIZE, **changes}), "x.yaml")


def test_by_hand() -> None:
    """Pre-training: 60 steps of 32 blocks of 128 tokens, 6e9 FLOPs a token. SFT: 10 steps of 16 prompts, 30
    tokens each. Preference: 3 runs of 5 steps of 2 pairs.

    Reference: 600 pairs of 50 tokens, forward. Pairs: 600 / 6 prompts, 400 samples 64 at a time, so 7 times 20 steps of
    2 bytes a weight, and 400 prompts of 10 tokens. AdamW holds 16 bytes a weight, activations 34 x 10 x 100 a token.
    """
    costs = {one.stage: one for one in job_costs(suite(), Size.model_validate(SIZE))}
    assert list(costs) == ["pretrain", "sft", "pairs", "reward", "reference", "preference", "generate", "score"]
    assert costs["pretrain"].hours * 3600 == pytest.approx(6e9 * 60 * 32 * 128 / FLOPS)
    assert costs["sft"].hours * 3600 == pytest.approx(6e9 * 160 * 30 / FLOPS)
    assert costs["preference"].hours * 3600 == pytest.approx(3 * 6e9 * 10 * 50 / FLOPS)
    assert costs["reference"].hours * 3600 == pytest.approx(2e9 * 600 * 50 / FLOPS)
    assert costs["pairs"].hours * 3600 == pytest.approx(140 * 2e9 / BANDWIDTH + 2e9 * 400 * 10 / FLOPS)
    assert costs["sft"].gigabytes == pytest.approx((16e9 + 34 * 1000 * 4096) / 1e9)
    assert (costs["preference"].jobs, costs["generate"].jobs) == (3, 5)


def test_what_is_prepared_counts_instead(tmp_path: Path) -> None:
    totals = {"prompt": {"total": 70}, "chosen": {"total": 30}, "rejected": {"total": 50}}
    audit = {"splits": {"train": {"used": 10, "tokens": totals}}}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    size, counted = sized(suite(), tmp_path / "audit.json")
    assert (size.comparisons, size.prompt_tokens, size.response_tokens, counted) == (10, 7, 4, "counted by the audit")


def test_a_suite_without_a_size_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "configs/quickstart.yaml")]) == 2
    assert "quickstart: size is missing: state parameters" in capsys.readouterr().err


@pytest.mark.parametrize("name", PAPERS)
def test_the_documented_table_is_what_plan_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / f"configs/{name}.yaml")]) == 0
    _, hours, gigabytes = capsys.readouterr().out.splitlines()[-1].split()
    lines = (ROOT / "docs/tutorials/reproduce.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}` |"))
    assert row.endswith(f"| {float(hours):.0f} | {gigabytes} |")
