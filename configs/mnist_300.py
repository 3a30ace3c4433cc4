"""300-100-10 on MNIST by the published schedule (arXiv 2111.07046): 450 epochs, 150 per layer.

python -m jaxbin.main --config=configs/mnist_300.py
python -m jaxbin.main --config=configs/mnist_300.py --config.method=binary
python -m jaxbin.main --config=configs/mnist_300.py --config.order=231 --config.stage=full
"""

from ml_collections import ConfigDict

from jaxbin.config import base_config


def get_config() -> ConfigDict:
    """The published hyper-parameters (docs/method.md section 5)."""
    return base_config(
        network="mlp300",
        dataset="mnist",
        epochs=450,
        epochs_per_layer=150,
        sensitivity_epochs=150,
        batch_size=100,
        optimizer="adam",
        learning_rate=0.1,
        checkpoint_every=10,
    )
