"""The table of architectures in the docs is that of the installed transformers."""

import pytest
from transformers import AutoConfig

from architectures import STATED, TYPES, read_table, row
from prefdag.errors import UserError
from prefdag.models.proof import prove

SLOW = ("bailing_hybrid", "kimi_linear")  # minutes: their fast kernels are for GPUs
PROVED = [name for name in TYPES if name not in SLOW][::9]


def test_the_table_names_every_type() -> None:
    assert list(read_table()) == TYPES


@pytest.mark.parametrize("name", PROVED)
def test_a_row_is_what_a_proof_gives(name: str) -> None:
    assert row(name)[0] == read_table()[name][0]


@pytest.mark.parametrize("name", ["bert", "xlnet"])
def test_a_model_whose_tokens_read_later_ones_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no causal language model"):
        prove(AutoConfig.for_model(name), name)
    assert name not in STATED or read_table()[name][0] != "refused"
