"""Imported by the process that others are forked from: the seconds that each would take for it."""

import compilations
import ml_collections.config_flags
from absl import app

import jaxbin.runs.advice
import jaxbin.train

__all__ = ["app", "jaxbin", "ml_collections"]

compilations.collect_less_garbage()
