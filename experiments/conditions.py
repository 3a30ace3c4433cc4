"""In which fields of their configurations runs have to agree to be compared."""

from jaxbin import config

SCHEDULE = ("epochs", "epochs_per_layer", "sensitivity_epochs")
"""Durations in epochs."""
MILESTONES = ("milestones", "sensitivity_milestones")
"""Epochs after which the learning rate drops."""

VARIED = ("stage", "method", "order", "sensitivity_layer", "latent_reset", "learning_rate", "seed")
"""What tells the runs of an experiment apart: a row of a table says it by itself."""
_ROW = ("network", "depth", *VARIED)
_NO_RESULT = (
    *("data_dir", "download", "split_file", "evaluate_only", "evaluate_train", "histograms"),
    *("eval_batch_size", "checkpoint_every", "checkpoint_every_steps", "dispatch", "input_workers"),
    "compilation_cache",
)

_DURATIONS = (
    *(*SCHEDULE, *MILESTONES),
    *("anneal_epochs", "float_epochs", "warmup_epochs", "patience"),
)

CONDITIONS = tuple(name for name in config.FIELDS if name not in (*_ROW, *_NO_RESULT))
"""Fields in which runs have to agree to be compared, or to be seeds of one another."""
SEARCHED = tuple(name for name in CONDITIONS if name not in _DURATIONS)
"""Those in which a search has to agree with the runs that take its rates."""
