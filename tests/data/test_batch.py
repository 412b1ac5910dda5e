import pytest
import torch

from captioning.data.batch import Batch


def test_a_grid_is_the_images_unless_they_are_pixels() -> None:
    tokens = torch.ones(2, 1, 3, dtype=torch.long)
    grids = torch.zeros(2, 4, 8, dtype=torch.float16)
    assert Batch(grids, tokens, ["a", "b"]).grid is grids
    pixels = Batch(torch.zeros(2, 3, 32, 32), tokens, ["a", "b"])
    with pytest.raises(RuntimeError, match=r"\(2, 3, 32, 32\).*encoder"):
        _ = pixels.grid
    assert pixels._replace(images=grids).grid is grids
