"""The reward of self-critical training against sacreeos, the tool of Hu et al. 2023."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning.metrics.reward import CaptionReward

RECORDED = json.loads(Path(__file__).with_name("sacreeos_rewards.json").read_text())
"""Made by ``make_sacreeos_rewards.py``."""


@pytest.mark.parametrize(
    "case", RECORDED["cases"], ids=lambda case: f"{case['metric']}-{case['end_token']}"
)
def test_rewards_are_those_of_sacreeos(case: dict[str, Any]) -> None:
    samples, references = RECORDED["samples"], RECORDED["references"]
    found = [caption for of_image in samples for caption in of_image]
    images = [image for image, of in zip(references, samples, strict=True) for _ in of]

    def rewards(weight: float) -> np.ndarray:
        reward = CaptionReward(references, RECORDED["documents"], weight, case["end_token"])
        return reward(images, found, [True] * len(found))

    plain = rewards(0.0)
    mine = plain if case["metric"] == "CIDEr-D" else (rewards(2.0) - plain) / 2
    np.testing.assert_allclose(mine, case["rewards"], rtol=1e-6, atol=1e-7)
    assert max(case["rewards"]) > 0.5


def test_the_end_token_makes_a_bad_ending_cost_more() -> None:
    """Captions that end "with a" are the fault that Hu et al. 2023 describe."""
    references = {
        "1": [["a", "dog", "runs"]],
        "2": [["a", "cat", "with", "a", "ball"]],
        "3": [["two", "men", "sit", "with", "a", "dog"]],
    }
    captions = [["a", "dog", "runs"], ["a", "dog", "runs", "with", "a"]]

    def loss_of_reward(end_token: bool) -> float:
        reward = CaptionReward(references, references, end_token=end_token)
        whole, broken = reward(["1", "1"], captions, [True, True])
        return float(1 - broken / whole)

    assert loss_of_reward(end_token=True) > loss_of_reward(end_token=False) + 0.05


def test_a_caption_that_was_cut_off_has_no_end_token() -> None:
    references = {"1": [["a", "dog", "runs"]], "2": [["a", "cat"]]}
    reward = CaptionReward(references, references)
    ended, cut_off = reward(["1", "1"], [["a", "dog", "runs"]] * 2, [True, False])
    assert cut_off < ended
