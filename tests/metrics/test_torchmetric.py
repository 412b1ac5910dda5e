import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from captioning.metrics import score_captions
from captioning.metrics.torchmetric import CaptionScores
from captioning.support.errors import CaptioningError

METRICS = ["BLEU", "ROUGE-L", "CIDEr"]
REFERENCES = {
    "1.jpg": ["A dog runs .", "The dog ran fast ."],
    "2.jpg": ["Two men sit .", "Men on a bench"],
    "3.jpg": ["A \u2028 café 🐕"],
}
CAPTIONS = {"1.jpg": "a dog runs", "2.jpg": "two men sit on a bench", "3.jpg": "a\u2028café \ud800"}


def plain(scores: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: score.item() for name, score in scores.items()}


def test_batches_give_the_scores_of_the_whole() -> None:
    metric = CaptionScores(REFERENCES, METRICS)
    metric.update(["3.jpg", "1.jpg"], [CAPTIONS["3.jpg"], CAPTIONS["1.jpg"]])
    metric.update(["2.jpg"], [CAPTIONS["2.jpg"]])
    expected = score_captions(CAPTIONS, REFERENCES, METRICS)
    computed = metric.compute()
    assert plain(computed) == expected.corpus
    assert all(score.dtype == torch.float64 and score.shape == () for score in computed.values())
    assert metric.scores() == expected


def test_an_image_seen_twice_counts_once_with_its_first_caption() -> None:
    metric = CaptionScores(REFERENCES, METRICS)
    metric.update(list(CAPTIONS), list(CAPTIONS.values()))
    metric.update(["1.jpg", "2.jpg"], ["another caption", CAPTIONS["2.jpg"]])
    assert plain(metric.compute()) == score_captions(CAPTIONS, REFERENCES, METRICS).corpus


def test_reset_starts_an_epoch_anew_and_images_not_seen_do_not_count() -> None:
    metric = CaptionScores(REFERENCES, METRICS)
    metric.update(["3.jpg"], ["something else"])
    metric.compute()
    metric.reset()
    some = ["1.jpg", "2.jpg"]
    metric.update(some, [CAPTIONS[image] for image in some])
    expected = score_captions(
        {image: CAPTIONS[image] for image in some},
        {image: REFERENCES[image] for image in some},
        METRICS,
    )
    assert metric.scores() == expected


def test_casting_the_model_leaves_the_captions_alone() -> None:
    metric = CaptionScores(REFERENCES, METRICS)
    metric.update(list(CAPTIONS), list(CAPTIONS.values()))
    model = torch.nn.ModuleDict({"metric": metric})
    model.half()
    model.to(torch.bfloat16)
    model.double()
    assert plain(metric.compute()) == score_captions(CAPTIONS, REFERENCES, METRICS).corpus


def test_checkpoints_hold_nothing_of_it() -> None:
    metric = CaptionScores(REFERENCES, METRICS)
    metric.update(["1.jpg"], ["a dog"])
    assert metric.state_dict() == {}


def test_bad_input_is_refused() -> None:
    metric = CaptionScores(REFERENCES, METRICS)
    with pytest.raises(CaptioningError, match=r"'9\.jpg'"):
        metric.update(["9.jpg"], ["a dog"])
    with pytest.raises(ValueError, match="shorter"):
        metric.update(["1.jpg", "2.jpg"], ["a dog"])
    with pytest.raises(CaptioningError, match="'SPICE'"):
        CaptionScores(REFERENCES, ["SPICE"])
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(CaptioningError, match="no captions"),
    ):
        CaptionScores(REFERENCES, METRICS).compute()


# The second of two processes; the first is the test's own.
SECOND = """
import json, sys, warnings
import torch.distributed as dist
from captioning.metrics.torchmetric import CaptionScores
store, references, metrics, rounds = json.loads(sys.argv[1])
warnings.simplefilter("ignore")  # torchmetrics warns of a process without data
dist.init_process_group("gloo", init_method=store, rank=1, world_size=2)
metric = CaptionScores(references, metrics)
for _, share in rounds:
    metric.reset()
    if share:
        metric.update(*zip(*share))
    print(json.dumps({name: score.item() for name, score in metric.compute().items()}))
dist.destroy_process_group()
"""


def test_processes_agree_on_the_scores_of_all_their_images(tmp_path: Path) -> None:
    one, two, three = CAPTIONS.items()
    rounds = [([one, two], [two, three]), ([one, two, three], [])]  # an image twice; no images
    store = (tmp_path / "store").as_uri()
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND, json.dumps([store, REFERENCES, METRICS, rounds])],
        stdout=subprocess.PIPE,
        text=True,
    )
    dist.init_process_group(
        "gloo", init_method=store, rank=0, world_size=2, timeout=timedelta(minutes=10)
    )
    try:
        metric = CaptionScores(REFERENCES, METRICS)
        computed = []
        for share, _ in rounds:
            metric.reset()
            images, captions = zip(*share, strict=True)
            metric.update(images, captions)
            computed.append(plain(metric.compute()))
    finally:
        dist.destroy_process_group()
        output = second.communicate()[0]
    expected = score_captions(CAPTIONS, REFERENCES, METRICS).corpus
    assert computed == [expected] * 2
    assert [json.loads(line) for line in output.splitlines()] == [expected] * 2
