"""jaxbin trains neural networks with 1-bit weights by binarizing them layer by layer."""

__version__ = "0.1.0"
