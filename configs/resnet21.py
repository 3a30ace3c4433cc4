"""ResNet-21 on ImageNet by the published schedule (arXiv 2111.07046): 67 epochs, 2 per layer.

python -m jaxbin.main --config=configs/resnet21.py
python -m jaxbin.main --config=configs/resnet21.py --config.order=ascend --config.stage=full

docs/scaling.md says what it takes, and how it runs on several GPUs and machines.
"""

from ml_collections import ConfigDict

from jaxbin.config import base_config


def get_config() -> ConfigDict:
    """The published hyper-parameters (docs/method.md section 5)."""
    return base_config(
        network="resnet21",
        dataset="imagenet2012",
        epochs=67,
        epochs_per_layer=2,
        milestones=(42, 57),
        sensitivity_epochs=20,
        sensitivity_milestones=(20,),
        batch_size=256,
        eval_batch_size=256,
        optimizer="sgd",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        augment=True,
        checkpoint_every_steps=1000,
    )
