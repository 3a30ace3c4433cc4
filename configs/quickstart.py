"""Quick start: 300-100-10, layer by layer in forward order, on 5,000 real digits.

    python -m jaxbin.main --config=configs/quickstart.py

Under a minute on two cores; about 95 % of the 500 test digits are right.
"""

from ml_collections import ConfigDict

from jaxbin.config import base_config


def get_config() -> ConfigDict:
    """30 epochs, one layer more every 8: see the accuracy dip and come back."""
    return base_config(
        network="mlp300",
        dataset="mnist_5k",
        stage="full",
        method="iterative",
        order="forward",
        epochs=30,
        epochs_per_layer=8,
        learning_rate=0.001,
        checkpoint_every=10,
    )
