"""Gains of the trained and the held-out reward model over SFT, prompt by prompt."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefdag.reporting.proxy_gold import proxy_gold_table


def test_a_gain_is_over_the_answer_to_the_same_prompt(tmp_path: Path) -> None:
    """Prompts differ by 100, and every answer gains 3 by one reward model, 1 by the other: no width."""
    mood = np.array([-100.0, 0.0, 50.0, 100.0])
    for name, proxy, gold in (("sft", 0.0, 0.0), ("dpo", 3.0, 1.0)):
        (tmp_path / name).mkdir()
        table = pd.DataFrame({"prompt_id": range(4), "trained": mood + proxy, "trained_other": 2 * mood + gold})
        table.to_csv(tmp_path / name / "scores.csv", index=False)
    about = {"method": "dpo", "display": "DPO", "kl": 2.0, "kl_se": 0.1, "prompts": "test"}
    rows = [{"answers": name, "run": name, "step": 0, **about} for name in ("sft", "dpo")]
    scores = [tmp_path / name / "manifest.json" for name in ("sft", "dpo")]
    table = proxy_gold_table(pd.DataFrame(rows), scores, "other").set_index("answers")
    assert list(table.index) == ["dpo"]
    for side, gain in (("proxy", 3 / mood.std()), ("gold", 1 / (2 * mood).std())):
        assert table.loc["dpo", [side, f"{side}_low", f"{side}_high"]].tolist() == pytest.approx([gain] * 3)
