"""MLflow's own pages in a browser, by clicking only: the best policy under a KL, where it came from, what it wrote."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from test_page import chromium, pytestmark  # noqa: F401

from conftest import ROOT
from prefdag.cli.ui import page_of_newest
from prefdag.provenance.journal import Journal, open_journal
from prefdag.tracking.sync import Writer
from synthetic_results import ATTACK

PATIENCE = 120
COLUMNS = ("result.kl", "result.reward")  # the first ones; the list draws the others as one scrolls


def finished(root: Path, stage: str, name: str | None, digest: str, inputs: dict[str, str], **facts) -> None:
    """One job's journal. digest: of its manifest; inputs: name -> digest of the manifest that it read."""
    journal: Journal = open_journal(root, stage, name)
    read = {key: {"path": key, "sha256": value} for key, value in inputs.items()}
    journal.start(config=facts.get("config", {}), inputs=read, code="c0de")
    if "data" in facts:
        journal.dataset(facts["data"], digest="d" * 64, path=root / "prepare", context="training")
    for role, model in facts.get("models", {}).items():
        journal.model(model, path=root / stage / "model", sha256=model * 4, role=role)
    for step, loss in enumerate(facts.get("losses", ())):
        journal.metrics(step, {"loss": loss})
        journal.system(step, {"system/cpu_utilization_percentage": 50.0 + step})
    if "results" in facts:
        journal.metrics(None, facts["results"])
    for path in facts.get("artifacts", ()):
        journal.artifact(path, path.name)
    journal.end(status="finished", manifest=digest, seconds=1.0, peak_memory_mb=1.0)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """Three policies: the best of all is too far away; of the two under KL 5 `dpo` has the larger reward."""
    root = tmp_path_factory.mktemp("project") / "results" / "toy"
    finished(root, "sft", None, "s" * 64, {}, models={"output": "sft"}, data="demonstrations", losses=(3.0, 2.0))
    for name, beta, reward, kl in (("dpo-far", 0.01, 0.9, 9.0), ("dpo", 0.1, 0.5, 4.0), ("dpo-near", 1.0, 0.1, 0.5)):
        config = {"objective": {"method": "dpo", "beta": beta}}
        models = {"input": "sft", "output": name}
        finished(root, "preference", name, name * 9, {"policy": "s" * 64}, config=config, models=models, data="pairs")
        samples = root / "score" / name / "samples.csv"
        samples.parent.mkdir(parents=True)
        with samples.open("w", newline="") as stream:
            csv.writer(stream).writerows([["prompt", "response"], ["The film", f"{name} says {ATTACK}"]])
        results = {"reward": reward, "kl": kl}
        read = {"policy": name * 9}
        models = {"input": name}
        finished(root, "score", name, name * 8, read, models=models, results=results, artifacts=[samples])
    return root


@pytest.fixture(scope="module")
def ui(suite) -> Iterator[str]:
    """`prefdag ui`, on a port of its own."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    Writer(suite).replay()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefdag", "ui", "--results", str(suite.parent), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.3)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


def click(driver, text: str) -> None:
    """Click the first visible link, or other element, with this text, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for path in (f"//a[normalize-space()='{text}']", f"//*[normalize-space(text())='{text}']"):
            for element in driver.find_elements("xpath", path):
                try:
                    if element.is_displayed():
                        element.click()
                        driver.switch_to.window(driver.window_handles[-1])  # links of a description open a new tab
                        return
                except Exception as error:
                    if time.monotonic() > deadline:
                        raise AssertionError(text) from error
        assert time.monotonic() < deadline, (text, driver.find_element("tag name", "body").text)
        time.sleep(0.3)


def shown(driver, *texts: str) -> str:
    """The page's text once it holds all of these."""
    deadline = time.monotonic() + PATIENCE
    while True:
        page = driver.execute_script("return document.body.innerText")
        if all(text in page for text in texts):
            return page
        assert time.monotonic() < deadline, (texts, page)
        time.sleep(0.3)


def test_only_this_machine_is_served(ui):
    """No socket listens on that port but the one of loopback."""
    port = int(ui.rpartition(":")[2])
    listening = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()
    ]
    places = [fields[1] for fields in listening if fields[1].endswith(f":{port:04X}") and fields[3] == "0A"]
    assert places == [f"0100007F:{port:04X}"]


def test_the_best_policy_under_a_kl_by_clicking(chromium, ui, suite):  # noqa: F811
    """From the page that `prefdag ui` prints: the question, then its first run, which names data and SFT weights."""
    chromium.set_window_size(1280, 900)
    chromium.get(f"{ui}/{page_of_newest(suite.parent / 'mlflow.db')}")
    text = shown(chromium, "preference/dpo-far", "3 matching runs", *COLUMNS)
    assert "score/dpo" not in text
    click(chromium, "Best reward under KL 5")
    text = shown(chromium, "preference/dpo", "preference/dpo-near", "2 matching runs", *COLUMNS)
    assert text.index("preference/dpo\n") < text.index("preference/dpo-near") and "preference/dpo-far" not in text
    click(chromium, "preference/dpo")
    shown(chromium, "result.reward", "objective.beta", "data pairs: prepare (training)", "weights sft:")
    click(chromium, "sft")
    shown(chromium, "demonstrations", "loss")


def test_links_of_the_page_follow_the_port(ui, suite):
    assert f"{ui}/#" in (suite / "mlflow.html").read_text() and ":5000" not in (suite / "mlflow.html").read_text()


def test_samples_are_a_table_and_what_a_model_wrote_is_text(chromium, ui, suite):  # noqa: F811
    chromium.get((suite / "mlflow.html").as_uri())
    click(chromium, "score/dpo")
    click(chromium, "Artifacts")
    click(chromium, "samples.csv")
    shown(chromium, "dpo says", ATTACK)
