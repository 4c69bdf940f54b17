"""Manifests that list no files, for readers that look at the other keys alone."""

import json
from typing import Any


def bare(stage: str = "tests", **parts: Any) -> str:
    """Return a manifest as text, such as `bare("preference", config={"objective": {"method": "dpo"}})`."""
    return json.dumps({"stage": stage, "code": {}, "config": {}, "inputs": {}, "files": {}, "facts": None} | parts)
