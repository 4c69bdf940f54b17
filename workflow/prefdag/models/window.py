"""Sliding attention windows: ours is full attention, which is equal while no comparison is longer than the window."""

from pathlib import Path

from transformers import AutoConfig

from prefdag.errors import UserError


def check_window(model: Path, reach: int, keys: str) -> None:
    """Check that prompt and response fit in the model's sliding window, if it has one.

    Args:
        model: a folder; without config.json (a tokenizer alone) there is no window.
        reach: the longest prompt and response, in tokens.
        keys: the suite's keys to lower, for the message.

    Raises:
        UserError: if `reach` is larger.
    """
    if not (model / "config.json").is_file():
        return
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and reach > window:
        raise UserError(f"{model}: attends to {window} tokens, and {keys} allow {reach}; lower them")
