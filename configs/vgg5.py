"""VGG-5 on CIFAR-10 by the published schedule (arXiv 2111.07046): 750 epochs, 150 per layer.

python -m jaxbin.main --config=configs/vgg5.py
python -m jaxbin.main --config=configs/vgg5.py --config.order=ascend --config.stage=full
"""

from ml_collections import ConfigDict

from jaxbin.config import base_config


def get_config() -> ConfigDict:
    """The published hyper-parameters (docs/method.md section 5)."""
    return base_config(
        network="vgg5",
        dataset="cifar10",
        epochs=750,
        epochs_per_layer=150,
        sensitivity_epochs=200,
        batch_size=100,
        optimizer="adam",
        learning_rate=0.1,
        augment=True,
        checkpoint_every=10,
    )
