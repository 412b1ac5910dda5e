"""Record maps of efficientnet-lite-pytorch, from which the published weights come, for the tests.

    pip install --no-deps efficientnet-lite-pytorch==0.1.0
    python tests/models/make_efficientnet_lite_grids.py > tests/models/efficientnet_lite_grids.json

The weights and the pictures are made by formulas, which the test repeats. A map is recorded by a
few projections of each of its locations.
"""

import json
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def weights_like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names and shapes whose values depend on nothing else."""
    made = {}
    for key, like in state.items():
        wave = torch.arange(like.numel(), dtype=torch.float64).mul(0.7).add(len(key)).sin()
        wave = wave.view(like.shape)
        if like.ndim == 4:
            wave = wave * (4 / like[0].numel()) ** 0.5
        elif key.endswith(("weight", "running_var")):
            wave = 1 + 0.5 * wave
        made[key] = wave.to(like.dtype)
    return made


def pictures(size: int) -> Tensor:
    """Two pictures."""
    numbers = torch.arange(2 * 3 * size * size, dtype=torch.float64)
    return (numbers * 0.013).sin().add((numbers * 0.37).cos()).float().view(2, 3, size, size)


def projections(found: Tensor) -> Tensor:
    """Three sums over the channels of each location; batch x rows x columns x 3."""
    channels = torch.arange(found.shape[1], dtype=torch.float64)
    directions = torch.stack([(channels * pace).cos() for pace in (0.3, 1.1, 2.3)])
    return torch.einsum("bcij,pc->bijp", found.double(), directions)


def main() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    recorded = []
    for name in NAMES:
        for size in (64, 96):
            model = EfficientNet.from_name(name.replace("_lite", "-lite"), image_size=size).eval()
            model.load_state_dict(weights_like(model.state_dict()))
            maps: dict[int, Tensor] = {}
            # The last block before the one that reduces the map to a 32nd of the picture.
            strides = [block._block_args.stride for block in model._blocks]
            reducing = max(n for n, stride in enumerate(strides) if stride in ([2], 2))
            model._blocks[reducing - 1].register_forward_hook(
                lambda *call, maps=maps: maps.update({16: call[2].clone()})
            )
            with torch.no_grad():
                maps[32] = model.extract_features(pictures(size))
            for stride, found in sorted(maps.items()):
                recorded.append(
                    {
                        "name": name,
                        "size": size,
                        "stride": stride,
                        "channels": found.shape[1],
                        "projections": [
                            float(f"{x:.6g}") for x in projections(found).flatten().tolist()
                        ],
                    }
                )
    json.dump(recorded, sys.stdout)
    print()


if __name__ == "__main__":
    main()
