"""Record rewards and losses of sacreeos, the tool of Hu et al. 2023, for the tests.

    pip install --no-deps sacreeos==1.0.2; pip install nltk scipy
    python tests/metrics/make_sacreeos_rewards.py > tests/metrics/sacreeos_rewards.json

sacreeos is not installed with this project, because it declares a dependency on ``typing``, which
shadows Python's own module.
"""

import json
import random
import sys
from typing import Any

import torch
from sacreeos.scst import Scst

WORDS = ["a", "dog", "cat", "man", "runs", "sits", "on", "the", "grass", "with", "red", "ball"]
END = "<end>"
SAMPLES = 3


def captions(count: int, seed: int) -> list[list[str]]:
    generator = random.Random(seed)
    return [generator.choices(WORDS, k=generator.randint(1, 9)) for _ in range(count)]


def joined(words: list[str], end: bool) -> str:
    return " ".join([*words, END] if end else words)


def main() -> None:
    references = {f"{image}.jpg": captions(3, image) for image in range(6)}
    documents = references | {f"{image}.jpg": captions(2, image) for image in range(6, 20)}
    samples = [captions(SAMPLES - 1, 50 + image) for image in range(6)]
    for image, of_image in enumerate(samples):  # one sample repeats most of a reference
        of_image.append([*references[f"{image}.jpg"][0][:6], "a"])
    greedy = captions(6, 99)
    log_probs = -torch.rand(6, SAMPLES, 12, generator=torch.Generator().manual_seed(0))
    recorded: dict[str, Any] = {
        "references": references,
        "documents": documents,
        "samples": samples,
        "greedy": greedy,
        "log_probs": log_probs.sum(-1).tolist(),
        "cases": [],
    }
    for end in (True, False):
        for baseline in ("leave_one_out", "greedy"):
            for metric in ("CIDEr-D", "BLEU-4"):
                documents_of = [[joined(each, end) for each in of] for of in documents.values()]
                tool = Scst(
                    Scst.SCST_CONFIG_STANDARD if end else Scst.SCST_CONFIG_NO_EOS,
                    Scst.METRIC_CIDER_D if metric == "CIDEr-D" else Scst.METRIC_BLEU,
                    Scst.BASE_AVERAGE if baseline == "leave_one_out" else Scst.BASE_GREEDY,
                    eos_token=END,
                    corpus_refss=documents_of if metric == "CIDEr-D" else None,
                    base_args={"nspi": SAMPLES},
                    verbose=False,
                )
                loss, _, rewards = tool.compute_scst_loss(
                    [[joined(each, end) for each in of] for of in samples],
                    log_probs,
                    [[joined(each, end) for each in of] for of in references.values()],
                    base_preds=[[joined(each, end)] * SAMPLES for each in greedy]
                    if baseline == "greedy"
                    else None,
                    get_stat_data=True,
                )
                recorded["cases"].append(
                    {
                        "end_token": end,
                        "baseline": baseline,
                        "metric": metric,
                        "rewards": [float(each) for each in rewards],
                        "loss": float(loss),
                        "signature": tool.get_signature(),
                    }
                )
    json.dump(recorded, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
