"""The training step of the CIFAR-10 networks in plain PyTorch, to compare speeds with.

Development only: it needs torch, shares no code with the package, and is no reference for results.
The layers, shapes, optimizer and data path are those of `jaxbin.networks.registry` and `configs/`.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sign(torch.autograd.Function):
    """The sign with a straight-through gradient."""

    @staticmethod
    def forward(context, weight: Tensor) -> Tensor:
        """+1 for zero, as in jaxbin."""
        del context
        return torch.where(weight < 0, -1.0, 1.0)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        """The gradient, unchanged."""
        del context
        return gradient


class Binary(nn.Module):
    """A convolution or dense layer with a mask."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.binary = True

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's outputs with the weights that the mask asks for."""
        layer = self.layer
        weight = Sign.apply(layer.weight) if self.binary else layer.weight
        if isinstance(layer, nn.Linear):
            return functional.linear(inputs, weight, layer.bias)
        return functional.conv2d(inputs, weight, layer.bias, layer.stride, layer.padding)


class Block(nn.Module):
    """A residual block with shortcut A."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Binary(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
        self.conv2 = Binary(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False))
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Images to images."""
        outputs = functional.relu(self.norm1(self.conv1(inputs)))
        outputs = self.norm2(self.conv2(outputs))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        half = self.added // 2
        return functional.relu(
            outputs + functional.pad(shortcut, (0, 0, 0, 0, half, self.added - half))
        )


def _vgg(channels: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    inputs, side = 3, 32
    for outputs in channels:
        for _ in range(2):
            layers += [Binary(nn.Conv2d(inputs, outputs, 3, 1, 1))]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
        side //= 2
    layers.append(nn.Flatten())
    inputs *= side * side
    for _ in range(2):
        layers += [Binary(nn.Linear(inputs, 256)), nn.BatchNorm1d(256), nn.ReLU()]
        inputs = 256
    return nn.Sequential(*layers, Binary(nn.Linear(256, 10)), nn.BatchNorm1d(10))


def _resnet20() -> nn.Module:
    layers: list[nn.Module] = [Binary(nn.Conv2d(3, 16, 3, 1, 1, bias=False))]
    layers += [nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(inputs, outputs, 1 if outputs == inputs else 2))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Binary(nn.Linear(64, 10)))


def make_step(
    network: str, channels_last: bool, device: str = "cpu", precision: str = "float32"
) -> Callable[[], Tensor]:
    """A function that runs one training step on random images and returns the loss.

    On a GPU the loss is a promise: `torch.cuda.synchronize` waits for it.

    Args:
      network: "vgg5", "vgg9" or "resnet20", at its published batch size.
      channels_last: memory order of the images, PyTorch's fast one on CPUs.
      device: "cpu" or "cuda".
      precision: of products: "float32", "tf32" or "bfloat16", the last by autocast.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True  # XLA chooses its kernels by timing them, too
    model = {
        "vgg5": lambda: _vgg((64,)),
        "vgg9": lambda: _vgg((64, 128, 256)),
        "resnet20": _resnet20,
    }[network]().train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=layout)
    batch_size = batch_size_of(network)
    parameters = model.parameters()
    optimizer = (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
        if network == "resnet20"
        else torch.optim.Adam(parameters, lr=0.001)
    )
    images = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (5000,), device=device)

    def step() -> Tensor:
        chosen = torch.randint(0, len(labels), (batch_size,), device=device)
        batch = ((images[chosen].float() / 255 - 0.5) / 0.2).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = functional.cross_entropy(model(batch), labels[chosen])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def batch_size_of(network: str) -> int:
    """The published batch size."""
    return 128 if network == "resnet20" else 100


def time_convolution(
    inputs: tuple[int, ...], kernel: tuple[int, ...], strides: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each of `repeats` timings of a convolution and its gradients, channels last.

    Args:
      inputs: batch, height, width, channels.
      kernel: height, width, channels in and out.
    """
    batch, height, width, channels = inputs
    order = torch.channels_last
    images = torch.randn(batch, channels, height, width).contiguous(memory_format=order)
    weights = torch.randn(kernel[3], channels, *kernel[:2]).contiguous(memory_format=order)
    given = (strides, kernel[0] // 2, 1, 1)  # strides, padding, dilation, groups
    gradient = torch.randn_like(functional.conv2d(images, weights, None, *given))

    def backward(*wanted: bool) -> Callable[[], object]:
        what = torch.ops.aten.convolution_backward
        lists = ([strides] * 2, [kernel[0] // 2] * 2, [1, 1])
        return lambda: what(gradient, images, weights, None, *lists, False, [0, 0], 1, wanted)

    seconds = {}
    for operation, call in {
        "forward": lambda: functional.conv2d(images, weights, None, *given),
        "input gradient": backward(True, False, False),
        "kernel gradient": backward(False, True, False),
    }.items():
        timings = []
        with torch.no_grad():
            for _ in range(repeats + 2):
                started = time.perf_counter()
                call()
                timings.append(time.perf_counter() - started)
        seconds[operation] = timings[2:]  # the first ones prepare kernels
    return seconds
