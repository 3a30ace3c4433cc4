"""What PyTorch's published PARQ computes of a few weights, for tests/binarization/test_parq.py.

    pip install torch==2.13.0 torchao==0.18.0
    python benchmarks/parq_vectors.py --output=tests/golden/parq.npz

Scales and maps of `torchao.prototype.parq`: `LSBQuantizer` with one bit, for a whole layer and for
each channel, then `ProxBinaryRelax` and `ProxPARQ` in every tenth of an annealing.
"""

import argparse

import numpy as np
import torch
from torchao.prototype.parq.optim import ProxBinaryRelax, ProxPARQ
from torchao.prototype.parq.quant import LSBQuantizer

STEPS = 10


def main() -> None:
    """Write the vectors: latents (outputs, inputs), v sign(u), and every map (STEPS + 1, ...)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    output = parser.parse_args().output
    latent = torch.from_numpy(np.random.RandomState(0).normal(0, 0.3, (5, 12)).astype(np.float32))
    vectors = {"latent": latent.numpy()}
    maps = {
        "relax": ProxBinaryRelax(0, STEPS),
        "parq": ProxPARQ(0, STEPS, steepness=10),
        "parq_steepness_3": ProxPARQ(0, STEPS, steepness=3),
    }
    for scale, axis in (("mean", None), ("channel", 1)):
        binary, values = LSBQuantizer().quantize(latent, 1, dim=axis)
        vectors[f"{scale}_sign"] = binary.numpy()
        for name, proximal in maps.items():
            computed = []
            for step in range(STEPS + 1):
                weights = latent.clone()
                proximal.apply_(weights, binary, values, step, dim=axis)
                computed.append(weights.numpy())
            vectors[f"{scale}_{name}"] = np.stack(computed)
    np.savez(output, **vectors)


if __name__ == "__main__":
    main()
