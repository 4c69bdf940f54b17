"""A loss in a Python file of the user's own: planned without running it, run where it belongs, counted as code."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import test_mistakes
import torch
import yaml
from torch import Tensor

from artifacts import cache_of
from comparisons import comparisons, stored, tiny
from conftest import MINI, ROOT
from conftest import OWN_LOSS as DPO
from conftest import OWN_METHOD as METHOD
from prefdag.cli.main import main
from prefdag.config.loading import merge
from prefdag.config.objectives import objective
from prefdag.config.sections.training import Training
from prefdag.config.suite import resolve
from prefdag.data.token_store import Store
from prefdag.errors import Stopped, UserError
from prefdag.losses.registry import loss_of
from prefdag.losses.user import load_user_loss
from prefdag.provenance.manifest import read_manifest
from prefdag.provenance.sources import code_digests
from prefdag.reporting.tables import title
from prefdag.training.loop import train
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.reference_cache import ReferenceCache
from registry import pair

plain_suite = test_mistakes.prepared  # a tiny suite by plain commands, up to the reference cache


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language in the tutorial on a new loss."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/tutorials/new-loss.md").read_text(), re.S)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stored(tmp_path / "store", comparisons(18, 2))


@pytest.fixture
def reference(store: Store, tmp_path: Path) -> ReferenceCache:
    return cache_of(tmp_path / "reference", tiny(dtype=torch.float32), store)


def trained(entry: dict[str, Any], store: Store, reference: ReferenceCache) -> tuple[list[float], Tensor]:
    """Losses of six steps and the weights after them, in one row."""
    model = tiny(dtype=torch.float32)
    settings = Training(batch_size=4, learning_rate=1e-2, max_steps=6, epochs=9, tokens_per_batch=60)
    task = PreferenceTask(objective(entry, "tests", "row"), model, store, reference)
    losses = [step.loss for step in train(model, store, settings, task)]
    return losses, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def same(one: tuple[list[float], Tensor], other: tuple[list[float], Tensor]) -> bool:
    return one[0] == other[0] and torch.equal(one[1], other[1])


def test_an_own_dpo_trains_to_the_bits_of_the_packages(workdir: Path, store: Store, reference: ReferenceCache):
    expected = trained({"method": "dpo", "beta": 0.3}, store, reference)
    assert same(trained({"method": METHOD, "beta": 0.3}, store, reference), expected)
    assert not same(trained({"method": METHOD, "beta": 0.31}, store, reference), expected)


def test_the_tutorials_loss_trains(workdir: Path, store: Store, reference: ReferenceCache):
    """The tutorial's file and row, verbatim; with offset 0 the loss is the package's DPO, to the bit."""
    (workdir / "my_losses.py").write_text(blocks("python")[0])
    (row,) = next(block for block in map(yaml.safe_load, blocks("yaml")) if "runs" in block)["runs"]
    suite = resolve(merge(yaml.safe_load(MINI), {"runs": [row]}), "suite.yaml")
    assert [run.name for run in suite.runs] == [f"dpo-offset0.5-seed{seed}" for seed in (0, 1, 2)]
    values = suite.runs[0].objective.model_dump()
    losses, _ = trained(values, store, reference)
    assert losses[0] == pytest.approx(0.974077, abs=1e-6), "policy and reference agree: -log s(-0.5)"
    assert same(trained({**values, "offset": 0.0}, store, reference), trained({"method": "dpo"}, store, reference))


def test_the_command_aligns_by_an_own_loss(
    plain_suite: Path, workdir: Path, store: Store, capsys: pytest.CaptureFixture[str]
):
    """`prefdag preference`: the weights of `dpo`, no path of this machine in the manifest, exit code 2 for mistakes."""
    shutil.copytree(plain_suite, workdir / "suite")
    command = test_mistakes.align(workdir / "suite")
    assert main(command) == 0
    by_the_package = read_manifest(workdir / "suite/preference/x/manifest.json").content
    arguments = [argument.replace('"method": "dpo"', f'"method": "{METHOD}"') for argument in command]
    assert main(arguments) == 0
    by_the_user = read_manifest(workdir / "suite/preference/x/manifest.json").content
    assert by_the_user["files"] == by_the_package["files"] and by_the_user["facts"] == by_the_package["facts"]
    assert by_the_user["config"]["objective"] == {"method": METHOD, "beta": 0.1}
    assert by_the_user["code"] == code_digests("preference", [Path("my_losses.py")]) != by_the_package["code"]
    assert str(workdir) not in json.dumps(by_the_user)
    (workdir / "my_losses.py").write_text(DPO.replace("-F.log", "-G.log"))
    sentence = test_mistakes.error_of(capsys, *arguments)
    raised = "my_dpo raised NameError: name 'G' is not defined"
    assert sentence == f"prefdag: my_losses.py: {raised} (line 7); fix the function and rerun"
    assert not (workdir / "suite/preference/x/manifest.json").exists()


SIGNATURE = "policy, reference, beta: float = 0.1"
ROW = {"name": "a", "method": METHOD}
AT = "suite.yaml: runs.a.method: "
MISTAKES = {
    "no such file": ("", "", {"method": "none.py:f"}, AT + "none.py: no such file; the path of f's file is taken"),
    "a path of this machine": ("", "", {"method": "/x/my.py:f"}, AT + "expected <file>.py:<function> with the file's"),
    "no function named": (
        "",
        "",
        {"method": "my_losses.py"},
        AT + "expected <file>.py:<function> with the file's path",
    ),
    "broken Python": (SIGNATURE, "policy, (", {}, AT + "my_losses.py: not valid Python (line 5: "),
    "no such function": (
        *("my_dpo", "dpo", {}),
        AT + "my_losses.py: no function my_dpo at its top level; write it or name one that is there (dpo)",
    ),
    "an option not given": (
        *("beta: float = 0.1", "beta: float", {}),
        "suite.yaml: runs.a.beta: missing; this key has no default and must be stated (an option of my_losses",
    ),
    "an option that is not there": (
        *("", "", {"gamma": 1}),
        "suite.yaml: runs.a.gamma: my_losses.py:my_dpo does not read gamma; its options are beta",
    ),
    "text for a number": (
        *("", "", {"beta": "much"}),
        'suite.yaml: runs.a.beta: expected a finite number, got "much" (an option of my_losses.py:my_dpo)',
    ),
    "truth for a number": (
        *("", "", {"beta": True}),
        "suite.yaml: runs.a.beta: expected a finite number, got true (an option of my_losses.py:my_dpo)",
    ),
    "the default's type": (
        *(": float = 0.1", "=1", {"beta": 0.5}),
        "suite.yaml: runs.a.beta: expected a whole number, got 0.5 (an option of my_losses.py:my_dpo)",
    ),
    "a default of another type": (
        *("= 0.1", '= "much"', {}),
        'suite.yaml: runs.a.beta: expected a finite number, got "much" (an option of my_losses.py:my_dpo)',
    ),
    "none of the choices": (
        *("beta: float = 0.1", 'of: Literal["sum", "mean"] = "sum"', {"of": "max"}),
        "suite.yaml: runs.a.of: expected one of 'sum' or 'mean', got \"max\" (an option of my_losses.py:my_dpo)",
    ),
    "no type": (
        ": float = 0.1",
        "",
        {"beta": 1},
        AT + "my_losses.py: my_dpo: beta needs a type: annotate it with float",
    ),
    "a default to work out": (
        *("= 0.1", "= 1 / 3", {}),
        AT + "my_losses.py: my_dpo: the default of beta must be written out (a number, text, true or false)",
    ),
    "a name that is taken": (
        *("beta: float", "seeds: int", {}),
        AT + "my_losses.py: my_dpo: an option cannot be called seeds, the name is taken; choose another",
    ),
    "another name that is taken": ("beta: float", "copy: int", {}, AT + "my_losses.py: my_dpo: an option cannot be"),
    "*args": ("reference, beta: float = 0.1", "*logprobs", {}, AT + "my_losses.py: my_dpo takes *args or **kwargs"),
    "**kwargs": ("beta: float = 0.1", "**options", {}, AT + "my_losses.py: my_dpo takes *args or **kwargs; name every"),
    "not policy first": (
        *("policy, reference", "logprobs, reference", {}),
        AT + "my_losses.py: my_dpo must take `policy`, the policy's LogProbs, as its first parameter; found logprobs",
    ),
    "by position": (
        "reference,",
        "reference, /,",
        {},
        AT + "my_losses.py: my_dpo: inputs and options are passed by name",
    ),
    "an unknown scope": (
        *("def my_dpo", "@loss(scope='epoch')\ndef my_dpo", {}),
        AT + 'my_losses.py: my_dpo: @loss(scope=...): expected one of "comparison", "step", got \'epoch\'',
    ),
    "an unknown statement": (
        *("def my_dpo", "@loss(reads='all')\ndef my_dpo", {}),
        AT + "my_losses.py: my_dpo: @loss has no argument reads; its arguments are title, paper, formula, first_step",
    ),
    "a statement to work out": (
        *("def my_dpo", "@loss(title=TITLE)\ndef my_dpo", {}),
        AT + "my_losses.py: my_dpo: @loss(title=...): write the value out, as text, numbers or tuples of them",
    ),
    "a decorator without arguments": (
        *("def my_dpo", "@loss\ndef my_dpo", {}),
        AT + "my_losses.py: my_dpo: write the decorator with named arguments, such as @loss(title=",
    ),
    "beyond a limit": (
        *("beta: float = 0.1", "beta: Annotated[float, Field(gt=0, le=1)]", {"beta": 2}),
        "suite.yaml: runs.a.beta: expected a number of at most 1, got 2 (an option of my_losses.py:my_dpo)",
    ),
    "a relative import": ("\nimport", "\nfrom . import x\nimport", {}, AT + "my_losses.py: relative imports are not"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_sentence_before_any_job(mistake: str, workdir: Path):
    old, new, row, sentence = MISTAKES[mistake]
    assert old in DPO
    (workdir / "my_losses.py").write_text(DPO.replace(old, new, 1) if old else DPO)
    with pytest.raises(UserError) as raised_error:
        resolve(merge(yaml.safe_load(MINI), {"runs": [{**ROW, **row}]}), "suite.yaml")
    assert str(raised_error.value).startswith(sentence) and "\n" not in str(raised_error.value)


def test_what_a_signature_says(workdir: Path):
    """Inputs by name, options with types, limits and defaults, the decorator's arguments; and planning runs nothing."""
    (workdir / "own.py").write_text(
        "raise SystemExit('this file was run')\n"
        "@loss(title='F', paper='G 2026', formula='a', responses='many', step_with=('b', 'x'))\n"
        "def f(policy, /, scores, *, labels, a: int | None = None, b: Literal['x', 'y'], c=-0.5, d: Positive = 1,\n"
        "      divergence: Literal['kl'] = 'kl', e: bool = False):\n"
        "    'Say\\n    what.\\n\\n    More.'\n"
    )
    entry = objective({"method": "own.py:f", "b": "y"}, "suite.yaml", "row")
    assert entry.reads == {"scores", "labels"}
    assert entry.parameters() == {"a": None, "b": "y", "c": -0.5, "d": 1.0, "divergence": "kl", "e": False}
    assert (entry.title, entry.paper, entry.formula, entry.responses) == ("F", "G 2026", "a", "many")
    assert (type(entry).__doc__, entry.family) == ("Say\nwhat.", "own")
    by_choice = {choice: objective({"method": "own.py:f", "b": choice}, "suite.yaml", "row").scope for choice in "xy"}
    assert by_choice == {"x": "step", "y": "comparison"}
    plain = objective({"method": METHOD}, "suite.yaml", "row")
    assert (plain.reads, plain.responses, plain.scope, plain.title) == ({"reference"}, "two", "comparison", "")


def test_inputs_and_options_are_passed_by_name(workdir: Path):
    """S_w - S_l = 5, scores 3 and 1, scale 0.5: 5 + 0.5 * 2 = 6; and twice the reference's margin of 2: 10."""
    text = (
        "def f(policy, reference, *, scale: float, scores):\n    margin = lambda values: values[:, 0] - values[:, 1]\n"
    )
    text += "    return margin(policy.total + scale * scores + 2 * reference.total)\n"
    (workdir / "own.py").write_text(text)
    loss = load_user_loss(objective({"method": "own.py:f", "scale": 0.5}, "tests", "row"))
    inputs = {"scores": torch.tensor([[3.0, 1.0]]), "reference": pair(-12, -14)}
    assert loss(pair(-10, -15), **inputs).item() == 10


COUNTING = """
from prefdag.losses.decorator import loss

@loss(scope="step")
def my_dpo(policy, state):
    return policy.total[:, 0], {"seen": state.get("seen", 0) + 1}
"""


def test_a_loss_with_a_state(workdir: Path):
    """It may read every input; one that reads `state` returns (values, next state), and is of the whole step."""
    (workdir / "my_losses.py").write_text(COUNTING)
    entry = objective({"method": METHOD}, "suite.yaml", "row")
    assert entry.reads == {"state"}
    values, after = loss_of(entry)(pair(-10, -15), state={"seen": 2})
    assert values.tolist() == [-10] and after == {"seen": 3}
    (workdir / "my_losses.py").write_text(COUNTING.replace('scope="step"', ""))
    with pytest.raises(
        UserError, match=r'reads `state`, which is carried from step to step; write @loss\(scope="step"\)'
    ):
        objective({"method": METHOD}, "suite.yaml", "row")


@pytest.mark.parametrize(
    "returned", ["policy.total[:, 0]", "(policy.total[:, 0], 1)", '(policy.total[:, 0], {"a": "b"})']
)
def test_what_a_loss_with_a_state_may_not_return(returned: str, workdir: Path):
    (workdir / "my_losses.py").write_text(re.sub("return .*", f"return {returned}", COUNTING))
    loss = loss_of(objective({"method": METHOD}, "tests", "row"))
    with pytest.raises(UserError, match=r"must return \(values, state\), the state a dict of numbers by name"):
        loss(pair(-10, -15), state={})
    (workdir / "my_losses.py").write_text(re.sub("return .*", "return policy.total, {}", COUNTING))
    loss = loss_of(objective({"method": METHOD}, "tests", "row"))
    with pytest.raises(UserError, match=r"returned float64 values of shape \[1, 2\]; expected one"):
        loss(pair(-10, -15), state={})


def test_it_is_printed_by_its_functions_name():
    assert title("configs/my_losses.py:dpo_offset") == title("dpo_offset") == "dpo offset"


RETURNED = {
    "policy.total": "returned float64 values of shape [1, 2]; expected one floating-point value per comparison, [1]",
    "policy.total.sum()": "returned float64 values of shape []; expected one",
    "margin(policy.total) > 0": "returned bool values of shape [1]; expected one",
    "0.5": "returned float; expected one floating-point value per comparison, [1], as a tensor",
    "margin(policy.total).detach()": "returned values without a gradient; compute them from `policy`, undetached",
    "policy.total[9]": "raised IndexError: index 9 is out of bounds for dimension 0 with size 1 (line 7); fix",
}


@pytest.mark.parametrize("returned", RETURNED)
def test_what_a_function_may_not_return(returned: str, workdir: Path):
    (workdir / "my_losses.py").write_text(re.sub("return .*", f"return {returned}", DPO))
    loss = loss_of(objective({"method": METHOD}, "tests", "row"))
    with pytest.raises(UserError) as raised_error:
        loss(pair(-10, -15), reference=pair(-12, -14))
    assert str(raised_error.value).startswith(f"my_losses.py: my_dpo {RETURNED[returned]}")


def test_a_file_that_cannot_be_imported_and_a_signal_in_it(workdir: Path):
    (workdir / "my_losses.py").write_text(DPO.replace("\nimport", "\nimport nowhere\nimport", 1))
    with pytest.raises(UserError) as raised_error:
        loss_of(objective({"method": METHOD}, "tests", "row"))
    raised = "ModuleNotFoundError: No module named 'nowhere' (line 2)"
    assert str(raised_error.value) == f"my_losses.py: importing it raised {raised}; fix the file and rerun"
    (workdir / "my_losses.py").write_text(
        re.sub("return .*", "from prefdag.errors import Stopped; raise Stopped('SIGTERM')", DPO)
    )
    with pytest.raises(Stopped):
        loss_of(objective({"method": METHOD}, "tests", "row"))(pair(-10, -15), reference=pair(-12, -14))
