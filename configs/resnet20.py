"""ResNet-20 on CIFAR-10 by the published schedule (arXiv 2111.07046): 1200 epochs, 50 per layer.

python -m jaxbin.main --config=configs/resnet20.py
python -m jaxbin.main --config=configs/resnet20.py --config.order=ascend --config.stage=full
python -m jaxbin.main --config=configs/resnet20.py --config.depth=56
"""

from ml_collections import ConfigDict

from jaxbin.config import base_config


def get_config() -> ConfigDict:
    """The published hyper-parameters (docs/method.md section 5)."""
    return base_config(
        network="resnet",
        depth=20,
        dataset="cifar10",
        epochs=1200,
        epochs_per_layer=50,
        milestones=(1000, 1100),
        milestone_offset=-1,
        sensitivity_epochs=300,
        sensitivity_milestones=(200, 250),
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        augment=True,
        checkpoint_every=10,
    )
