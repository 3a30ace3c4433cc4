"""A binary ResNet-20 on CIFAR-10 in 30 epochs, each channel's signs scaled by its mean latent size.

python -m jaxbin.main --config=configs/resnet20_30.py
python -m jaxbin.main --config=configs/resnet20_30.py --config.stage=full --config.seed=1
"""

from ml_collections import ConfigDict

from jaxbin.config import base_config


def get_config() -> ConfigDict:
    """No published run: docs/methods.md explains what differs."""
    return base_config(
        network="resnet",
        depth=20,
        dataset="cifar10",
        method="binary",
        scale="channel",
        epochs=30,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        rate_schedule="cosine",
        momentum=0.9,
        weight_decay=1e-4,
        augment=True,
    )
