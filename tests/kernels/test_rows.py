"""Rows of captions against loops."""

import torch

from captioning.kernels.ops import Rows


def test_rows_find_their_images_and_captions() -> None:
    images, captions = 3, 4
    index = torch.tensor([9, 0, 3, 6, 11])
    rows = Rows(index, images, captions)
    assert rows.image.tolist() == [2, 0, 0, 1, 2]
    values = torch.arange(10.0).view(5, 2)
    scattered = rows.scatter(values)
    for image in range(images):
        for caption in range(captions):
            place = image * captions + caption
            found = scattered[image, caption].tolist()
            if place in index.tolist():
                assert found == values[index.tolist().index(place)].tolist()
            else:
                assert found == [0, 0]
    assert rows.gather(scattered).equal(values)
    assert rows.head(2).index.tolist() == [9, 0]
    everything = Rows.all(images, captions, index.device)
    assert everything.image.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    grid = torch.randn(images, captions, 5)
    assert everything.scatter(everything.gather(grid)).equal(grid)
