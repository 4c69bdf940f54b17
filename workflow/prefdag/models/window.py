"""Attention windows: a model that sees only so many tokens back is exact here while no comparison is longer."""

from pathlib import Path

from transformers import AutoConfig

from prefdag.errors import UserError


def check_window(model: Path, reach: int, keys: str) -> None:
    """Raises `UserError` where prompt and response may reach further than the model's sliding window.

    model: a folder with config.json; one without (a tokenizer alone) has no window. reach: tokens. keys: what to lower.
    """
    if not (model / "config.json").is_file():
        return
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and reach > window:
        raise UserError(f"{model}: attends to {window} tokens, and {keys} allow {reach}; lower them")
