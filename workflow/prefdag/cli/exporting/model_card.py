"""Write the model card of an exported model, from the manifests of the model and of its ancestors, and its scores."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from prefdag.cli.exporting.prompt_format import TALK, PromptFormat, padding_token
from prefdag.config.online.methods import row_objective
from prefdag.provenance.manifest import MANIFEST, Manifest, checked, read_manifest, read_training, weights_digest
from prefdag.provenance.redaction import redact

ALIGNING = ("preference", "policy", "online")  # stages with a folder for each run
MEASURES = ("reward", "trained", "kl", "length", "distinct2", "repetition")


@dataclass(frozen=True)
class Export:
    """What the card says of an exported folder.

    Attributes:
        weights: folder of the weights within the stage.
        dtype: of the exported weights.
        form: how prompts are written, if the suite has prepared data.
        max_new_tokens: limit of a response in generation_config.json.
        notes: what the exported tokenizer cannot do.
    """

    weights: str = "model"
    dtype: str = "float32"
    form: PromptFormat | None = None
    max_new_tokens: int = 0
    notes: tuple[str, ...] = ()


def card(manifest: Manifest, run: str, export: Export) -> str:
    """Return the model card in Markdown, from the manifests of the model and of its ancestors, and from its scores."""
    suite = suite_folder(manifest)
    config = manifest.content["config"]
    aligned = manifest.content["stage"] in ALIGNING
    loss = row_objective(config["objective"], str(manifest.path), "config.objective") if aligned else None
    ancestry = list(lineage(manifest, suite))
    origins = [one.content["config"] for one in ancestry if one.content["stage"] == "fetch"]
    is_reward = manifest.content["stage"] == "reward"
    return _template().render(
        front=yaml.safe_dump(_front(loss.method if loss else None, origins, is_reward), sort_keys=False),
        name=run,
        title=f"Aligned by {loss.title}" if loss else f"Made by the stage `{manifest.content['stage']}`",
        paper=loss.paper if loss else "",
        suite=suite.resolve().name,
        choice=_choice(manifest),
        is_reward=is_reward,
        scoring=_scoring(manifest.folder) if is_reward else "",
        format=_format(export.form, is_reward) if export.form else None,
        max_new_tokens=export.max_new_tokens,
        sampling=_sampling(suite, run),
        notes=export.notes,
        lineage=[{"name": one.folder.relative_to(suite).as_posix(), "sha256": one.sha256} for one in ancestry],
        origins="\n".join(map(_origin, origins)),
        weights=weights_digest(manifest, export.weights),
        dtype=export.dtype,
        rounding=_rounding(export.dtype, ancestry),
        config=json.dumps(redact(config), indent=1, sort_keys=True),
        **_measured(manifest, suite, run),
    )


def _choice(manifest: Manifest) -> str:
    """Say what `select` chose this policy from; nothing of a policy that was not chosen."""
    path = manifest.folder / MANIFEST
    facts = read_manifest(path).content.get("facts") or {} if path.is_file() and path != manifest.path else {}
    if "setting" not in facts:
        return ""
    setting = ", ".join(f"{key} {value}" for key, value in facts["setting"].items())
    stopped = (manifest.content.get("facts") or {}).get("stopped_at")
    text = f"Chosen on validation prompts among the candidates of its row: {setting} (training `{facts['training']}`)."
    return text + (f" The training was stopped at step {stopped}; the config is that of its whole." if stopped else "")


def generation_of(suite: Path, run: str) -> dict[str, Any] | None:
    """Return the sampling settings of the answers that were evaluated; None if there are none."""
    path = suite / "generate" / run / MANIFEST
    settings: dict[str, Any] | None = read_manifest(path).content["config"]["generate"] if path.is_file() else None
    return settings


def _sampling(suite: Path, run: str) -> str:
    settings = generation_of(suite, run)
    if settings is None:
        return "none"
    keys = ("temperature", "top_p", "max_new_tokens")
    return ", ".join(f"{key} {settings[key]}" for key in keys) + f"; `generate/{run}`"


def _format(form: PromptFormat, is_reward: bool) -> dict[str, Any]:
    """Return the rows of the card's table of prompts."""
    prepare, pad = form.prepare, padding_token(form, is_reward)
    name = lambda one: f"`{form.token(one)}` ({one})"  # noqa: E731
    examples = (*form.prompts[:1], TALK, TALK[:1], "Once upon a time")
    example = next((text for text in map(form.written, examples) if text), "")[-400:]
    system = f", system prompt {json.dumps(prepare.system, ensure_ascii=False)}" if prepare.system is not None else ""
    return {
        "template": f"`{prepare.template}`{system}",
        "bos": f"{name(form.bos)}, once, before the prompt" if form.bos is not None else "none but the template's",
        "end": form.end,
        "end_text": name(form.end) + (", of which training wrote none" if prepare.end_of_turn == "none" else ""),
        "pad": "`<|pad|>`, added" if pad is None else name(pad),
        "example": f"`{json.dumps(example, ensure_ascii=False)}`".replace("|", "\\|"),
    }


def _rounding(dtype: str, ancestry: list[Manifest]) -> str:
    """Say how the exported weights differ from the trained ones, and from the base's in dtype."""
    text = f", rounded here to `{dtype}`; trained and evaluated in `float32`" if dtype != "float32" else ", as trained"
    paths = [one.folder / "model/config.json" for one in ancestry if one.content["stage"] == "fetch"]
    for config in (json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()):
        base = config.get("dtype") or config.get("torch_dtype")
        if base and base != dtype:
            text += f"; the base model's file states `{base}`"
    return text


def _scoring(folder: Path) -> str:
    """Say how the logits become the reward."""
    scoring = json.loads((folder / "scoring.json").read_text(encoding="utf-8"))
    steps = ["The reward of a response is the logit at its last token."]
    if (alpha := scoring["length_normalisation"]) is not None:
        steps.append(f"Divide each logit by {alpha} plus the number of tokens of the response.")
    if scoring["offset"]:
        steps.append(f"Subtract {', '.join(f'{value:.9g}' for value in scoring['offset'])}, which no weight holds.")
    if len(scoring["seeds"]) > 1:
        steps.append(f"Further members are in `seeds/`; join the logits of seeds {scoring['seeds']} in this order.")
    if len(scoring["seeds"]) > 1 or len(scoring["offset"]) > 1 or scoring["combine"] != "mean":
        steps.append(f"Of several logits, take `{scoring['combine']}`.")
    return " ".join([*steps, "`scoring.json` states the same."])


def lineage(manifest: Manifest, suite: Path) -> Iterator[Manifest]:
    """Yield the manifest and its ancestors in the suite, each once, nearest first."""
    known = {one.sha256: one for one in map(read_training, sorted(suite.glob("**/" + MANIFEST)))}
    waiting, seen = [manifest.sha256], set()
    while waiting:
        digest = waiting.pop(0)
        if digest in seen or digest not in known:
            continue
        seen.add(digest)
        yield known[digest]
        for value in known[digest].content["inputs"].values():
            waiting += value if isinstance(value, list) else [value]


def suite_folder(manifest: Manifest) -> Path:
    """Return results/<suite> of a policy's manifest."""
    return manifest.folder.parents[1 if manifest.content["stage"] in ALIGNING else 0]


def _front(method: str | None, origins: list[Mapping[str, Any]], is_reward: bool) -> dict[str, Any]:
    """Return the metadata that the Hub reads at the head of the card."""
    hub = "hub:"
    models = [config["model"]["source"] for config in origins if config.get("model")]
    data = [config["data"]["source"] for config in origins if config.get("data")]
    front: dict[str, Any] = {"library_name": "transformers"}
    front["pipeline_tag"] = "text-classification" if is_reward else "text-generation"
    front |= {"tags": ["prefdag", *([method] if method else [])]}
    for key, sources in (("base_model", models), ("datasets", data)):
        named = [source.removeprefix(hub) for source in sources if isinstance(source, str) and source.startswith(hub)]
        front |= {key: named if key == "datasets" else named[0]} if named else {}
    return front


def _origin(config: Mapping[str, Any]) -> str:
    """Describe what a `fetch` job fetched, with the commits of its lock."""
    lines = []
    for kind in ("data", "model", "tokenizer"):
        if config.get(kind):
            source = config[kind].get("source")
            lines.append(f"- {kind}: `{source if isinstance(source, str) else json.dumps(redact(source))}`")
    lock = config.get("lock") or {}
    return "\n".join([*lines, *(f"  - `{name}` at commit `{entry['commit']}`" for name, entry in _commits(lock))])


def _commits(lock: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in lock.items():
        if isinstance(entry, Mapping) and "commit" in entry:
            yield name, entry
        elif isinstance(entry, Mapping):
            yield from _commits(entry)


def _measured(manifest: Manifest, suite: Path, run: str) -> dict[str, Any]:
    """Return what was measured: the scores of a policy's answers, or the accuracy of a reward model."""
    nothing: dict[str, Any] = {"scores": [], "num_prompts": 0, "accuracy": None}
    if manifest.content["stage"] == "reward":
        path = manifest.folder / "evaluation.json"
        return {**nothing, "accuracy": json.loads(checked(path).read_text())["after"] if path.is_file() else None}
    path = suite / "score" / run / "summary.json"
    if not path.is_file():
        return nothing
    summary = json.loads(checked(path).read_text())
    names = [name for name in MEASURES if name in summary]
    if "trained" in names and summary["trained"]["mean"] == summary["reward"]["mean"]:
        names.remove("trained")  # the same quantity, with an interval of another seed
    rows = [{"name": name, **summary[name]} for name in names]
    return {**nothing, "scores": rows, "num_prompts": summary["reward"]["n"]}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.jinja")
