"""Exported adapters: as they are, on a base that others can load, or merged into it."""

import json
from pathlib import Path

from prefdag.config.data import HUB
from prefdag.errors import UserError
from prefdag.provenance.manifest import MANIFEST, read_manifest

CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def write_merged(source: Path, folder: Path, is_reward: bool) -> None:
    """Put the whole model in place of an exported adapter.

    Args:
        source: the folder of the adapter in the suite's results.
        folder: of the export.
        is_reward: whether the model is a reward model.
    """
    import torch

    from prefdag.models.loading import load_policy, load_scorer, save

    model = (load_scorer if is_reward else load_policy)(source, torch.device("cpu"))
    merged = folder / "merged"
    save(model, source, merged)
    for path in [*folder.glob("adapter_*"), folder / "config.json"]:
        path.unlink()
    for path in merged.iterdir():
        path.replace(folder / path.name)
    merged.rmdir()


def name_base(source: Path, folder: Path) -> None:
    """Name the base of an exported adapter as others can load it: its repository of the Hub, or its folder here.

    Raises:
        UserError: the base is itself a model with an adapter, which only a merged model holds.
    """
    from prefdag.models.merging import base_of

    base = base_of(source)
    if is_adapter(base):
        raise UserError(
            f"{source}: its adapter is on the merged model of {base}, which is in no single folder; add --merged"
        )
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    values |= {"base_model_name_or_path": str(base.resolve()), "revision": None}
    manifest = base.parent / MANIFEST
    fetched = read_manifest(manifest).content["config"] if manifest.is_file() else {}
    model = fetched.get("model")
    is_changed = fetched.get("base") or (model and model.get("resize"))  # `fetch` wrote other weights than those there
    if model and not is_changed and model["source"].startswith(HUB):
        values |= {"base_model_name_or_path": model["source"].removeprefix(HUB), "revision": model["revision"]}
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "config.json").unlink()  # with it, a folder would look like a whole model
