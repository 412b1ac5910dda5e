"""Example of a new metric: the share of a caption's words that occurred earlier in the caption.

python train.py --config-dir examples/conf experiment=word_repeats
python eval.py ckpt=CKPT data=scenes extra_metrics=[examples.word_repeats.WordRepeats]
"""

from pathlib import Path


class WordRepeats:
    """The share of repeated words: 2 of 5 in "a dog and a dog".

    The corpus score is the mean over the images.
    """

    name = "repeated words"  # the column in tables, and the score's name in results.json
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
            references: the reference captions of the same images; not needed here.
            photographs: the image files; not needed here.

        Returns:
            The score of each image, from 0 to ``highest``.
        """
        del references, photographs
        return {image: share_of_repeats(text.split()) for image, text in captions.items()}


def share_of_repeats(words: list[str]) -> float:
    """The share of the words that occurred earlier in the list; 0 if there are no words."""
    return 1 - len({*words}) / len(words) if words else 0.0
