"""Preference training: the settings that all runs of a suite share unless a row says otherwise."""

from prefdag.config.training import Training


class Preference(Training):
    """Training of one aligned policy."""
