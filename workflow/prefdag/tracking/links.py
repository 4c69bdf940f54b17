"""Links into MLflow's pages, and `results/<suite>/mlflow.html`, which the report's links lead to.

The report is written before its runs are tracked and does not depend on the database. This page is written by the
tracker, which knows the runs' ids, and links to each run.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from prefdag.tracking.records import Record, StoredRun

NOTE = "mlflow.note.content"
PAGE = "mlflow.html"
KIND = "mlflow.experimentKind", "custom_model_development"  # the UI shows runs and models, and nothing about agents
VIEW = "mlflow.sharedViewState."  # what MLflow's own "Share" stores: columns, order and filter of a list of runs
COLUMNS = (
    *("params.`objective.method`", "params.`objective.beta`", "metrics.`result.reward`", "metrics.`result.kl`"),
    *("metrics.`result.win_rate`", "metrics.`result.length`", "params.`preference.seed`"),
)
POLICIES, BY_REWARD = "metrics.`result.reward` > -1000000000", "metrics.`result.reward`"
QUESTIONS = {  # question -> name of its view, filter, order
    "Policies, best reward first": ("policies", POLICIES, BY_REWARD),
    "Best reward under KL 5": ("kl5", "metrics.`result.kl` < 5", BY_REWARD),
    "Runs that were killed or failed": ("failed", "attributes.status != 'FINISHED'", "attributes.start_time"),
}
DEFAULT_PORT, PORT_FILE = 5000, ".mlflow.port"  # below the results folder
TEMPLATES = Path(__file__).parents[1] / "templates"

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ suite }} in MLflow</title>
<style>
{% include "look.css" %}

:target { outline: 2px solid #e69f00; outline-offset: 2px; }
</style>
</head>
<body>
<header>
  <h1>{{ suite }} in MLflow</h1>
  <p class="lead">{% if local %}These links open while <code>prefdag ui</code> runs on this machine.
  {%- else %}On {{ server }}.{% endif %} A run that is repeated gets a new address.</p>
  <nav>
    <a href="report/index.html">Report</a>
    <a href="costs.html">Costs</a>
  </nav>
</header>
<main>
<section>
<h2>Questions</h2>
<ul>
{% for question, address in questions.items() %}<li><a href="{{ address }}">{{ question }}</a></li>
{% endfor %}</ul>
</section>
<section>
<h2>Runs</h2>
<ul>
{% for name, address in runs.items() %}<li id="{{ name }}"><a href="{{ address }}">{{ name }}</a></li>
{% endfor %}</ul>
</section>
</main>
</body>
</html>
"""


def questions(experiment: str) -> dict[str, str]:
    """Map each common question to the address, within MLflow's pages, of the sorted runs that answer it."""
    return {question: view_address(experiment, name) for question, (name, *_) in QUESTIONS.items()}


def view_address(experiment: str, view: str = "policies") -> str:
    """Return the address, within MLflow's pages, of a list of runs with its columns."""
    return _address(experiment, viewStateShareKey=f"prefdag-{view}")


def _address(experiment: str, run: str | None = None, **query: str) -> str:
    """Return the address of a run, or of an experiment's runs, in MLflow's layout for models (not for agents)."""
    query["workflowType"] = "machine_learning"
    return f"#/experiments/{experiment}/runs{f'/{run}' if run else ''}?{urlencode(query, quote_via=quote)}"


def describe_experiment(client: Any, experiment: str) -> None:
    """Store the views, and link them from the experiment's page unless a user has written a description there."""
    tags = client.get_experiment(experiment).tags
    wanted = dict([KIND])
    for name, search, order in QUESTIONS.values():
        view = {"searchFilter": search, "orderByKey": order, "orderByAsc": False, "selectedColumns": COLUMNS}
        wanted[f"{VIEW}prefdag-{name}"] = json.dumps(view)
    # One line: MLflow shows two of a description before "show more".
    wanted[NOTE] = " · ".join(f"[{question}]({address})" for question, address in questions(experiment).items())
    for key, value in wanted.items():
        if tags.get(key) != value and (key != NOTE or key not in tags):
            client.set_experiment_tag(experiment, key, value)


def describe_run(client: Any, experiment: str, run: str, record: Record, runs: Iterable[StoredRun]) -> None:
    """Name a run's data and weights, and link it to the runs that made its inputs.

    Of several runs that made the same manifest, the last that began before this one is linked.

    Args:
        client: MLflow's client.
        experiment: The experiment's id.
        run: The run's id.
        record: The run's journal.
        runs: All runs of the experiment.
    """
    assert record.start
    lines = []
    for name, read in record.start["inputs"].items():
        makers = [one for one in runs if one.end_tags.get("prefdag.manifest") == read["sha256"] and not one.deleted]
        earlier = sorted((one for one in makers if one.began <= record.began), key=attrgetter("began"))
        if earlier:
            lines.append(f"- reads {name}: [{earlier[-1].name}]({_address(experiment, earlier[-1].id)})")
    lines += [f"- data {one['name']}: `{one['path']}` ({one['context']})" for one in record.datasets]
    lines += [f"- weights {one['name']}: `{one['path']}`" for one in record.models if one["role"] == "input"]
    client.set_tag(run, NOTE, "\n".join(lines) or "Reads the output of no other run.")


def port_of(results: Path) -> int:
    """Return the port at which `prefdag ui` showed a results folder last."""
    try:
        return int((results / PORT_FILE).read_text())
    except (OSError, ValueError):
        return DEFAULT_PORT


def follow_port(results: Path, port: int) -> None:
    """Let the links of every `mlflow.html` lead to this port, now and when they are written again."""
    (results / PORT_FILE).write_text(f"{port}\n")
    for page in results.glob(f"*/{PAGE}"):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r"http://127\.0\.0\.1:\d+/", f"http://127.0.0.1:{port}/", text), encoding="utf-8")


def write_page(root: Path, uri: str, experiment: str, runs: Mapping[str, str]) -> None:
    """Write the page of links.

    Args:
        root: The suite's folder.
        uri: The tracking database.
        experiment: The experiment's id.
        runs: Name -> MLflow's id of the newest run of that name.
    """
    local = not uri.startswith(("http:", "https:"))
    server = (
        f"http://127.0.0.1:{port_of(root.parent)}" if local else re.sub("//[^/@]*@", "//", uri).rstrip("/")
    )  # no password
    content = (
        jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            suite=root.name,
            local=local,
            server=server,
            questions={text: f"{server}/{address}" for text, address in questions(experiment).items()},
            runs={name: f"{server}/{_address(experiment, id)}" for name, id in sorted(runs.items())},
        )
    )
    temporary = root / f".{PAGE}"
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, root / PAGE)
