"""A metric of one's own: the share of a caption's words that occurred in it before.

python train.py --config-dir examples/conf experiment=word_repeats
python eval.py ckpt=runs/NAME/DATE/checkpoints/best.ckpt extra_metrics=[examples.word_repeats.WordRepeats]
"""

from pathlib import Path


class WordRepeats:
    """Of "a dog and a dog", 2 of 5 words. The corpus score is the mean over the images."""

    name = "repeated words"  # of the column in tables, and of the score in results.json
    highest = 1.0  # the lowest score is 0
    higher_is_better = False

    def __call__(
        self,
        captions: dict[str, str],
        references: dict[str, list[str]],
        photographs: dict[str, Path],
    ) -> dict[str, float]:
        """Score one caption for each image.

        Args:
            captions: the caption of each image, by its id.
            references: what people wrote of the same images; not needed here.
            photographs: the image files; not needed here.

        Returns:
            The score of each image, from 0 to ``highest``.
        """
        del references, photographs
        return {image: share_of_repeats(text.split()) for image, text in captions.items()}


def share_of_repeats(words: list[str]) -> float:
    """The share of the words that occurred before; 0 where there are no words."""
    return 1 - len({*words}) / len(words) if words else 0.0
