"""MNIST and CIFAR-10 in the files their makers publish, and TFDS directories made of them."""
