"""``eval.py captions=humans``: how people score when their captions are compared with each other.

Each reference caption of an image is scored against the others of that image. In round k, the k-th
caption of every image is the hypothesis; the scores are the means over the rounds. With five
captions an image, a caption is scored against four. More references raise most scores, so that
these cannot be compared with scores on all five, and the leaderboard has them in a table of their
own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from captioning.data.cleaning import Cleaner
from captioning.data.references import read_references
from captioning.evaluation.captions_file import UNKNOWN, EvalSettings, find_photographs
from captioning.metrics import METRICS, CaptionScorer, Scores
from captioning.metrics.bootstrap import mean_intervals
from captioning.metrics.language import Language, describe_language
from captioning.metrics.tokenizer import TOKENIZATION
from captioning.reporting import measures, provenance, results
from captioning.reporting.terminal import show_results
from captioning.support.build import own
from captioning.support.errors import CaptioningError
from captioning.support.progress import Clock

NAME = "humans"


def score_humans(
    config: Mapping[str, Any], folder: Path, command: str
) -> dict[str, dict[str, float]]:
    """Score each reference caption against the others of its image, and write ``results.json``.

    Args:
        config: the configuration, composed from ``conf/eval.yaml``.
        folder: the folder for ``results.json``.
        command: the command line, for ``results.json``.

    Returns:
        ``{split: {metric: score}}``, the means over the rounds.

    Raises:
        CaptioningError: the references cannot be read, or an image has fewer than two.
    """
    settings = EvalSettings.of(config)
    assert settings.references is not None
    split, clock = settings.split, Clock()
    with clock("data"):
        references = read_references(settings.references, split, config["data"]["name"])
        photographs = find_photographs(references, list(references.captions), settings.images)
    if settings.need_photographs and not photographs:
        raise CaptioningError(
            "images= is missing: one of extra_metrics needs the photographs; give their folder."
        )
    settings.prepare()
    cleaner = Cleaner()
    train = None if references.train is None else {cleaner(t) for t in references.train}
    found: list[Scores] = []
    language: list[Language] = []
    with clock(f"score {split}"):
        for said, others in rounds(references.captions):
            scores = CaptionScorer(others, METRICS).score(said)
            found.append(settings.add_to(scores, said, others, photographs))
            texts = [cleaner(text) for text in said.values()]
            language.append(describe_language(texts, train=train, unknown=UNKNOWN))
    compared = " ".join(scores.statistics.references for scores in found)
    written = results.Results(
        name=settings.name or NAME,
        command=command,
        config=own(config),
        data=results.Data(
            name=references.name,
            fingerprint=references.fingerprint,
            images={split: len(references.captions)},
            references={split: sha256(compared.encode()).hexdigest()},
            tokenization=TOKENIZATION,
        ),
        versions=provenance.versions(),
        commit=provenance.commit(),
        seconds=clock.seconds,
        scores={
            split: {
                name: fmean(scores.corpus[name] for scores in found) for name in found[0].corpus
            }
        },
        intervals={split: mean_intervals([scores.statistics for scores in found])},
        language={split: _mean_language(language)},
        leave_one_out=len(found),
    )
    results.write_results(folder / "results.json", written)
    show_results(written, folder)
    return written.scores


def rounds(
    references: Mapping[str, Sequence[str]],
) -> list[tuple[dict[str, str], dict[str, list[str]]]]:
    """For each round, one caption of every image, and the others of its image.

    There are as many rounds as the image with the fewest captions has captions.

    Raises:
        CaptioningError: an image has fewer than two captions.
    """
    fewest = min(references, key=lambda image: len(references[image]))
    if len(references[fewest]) < 2:
        raise CaptioningError(
            f"captions=humans needs two references or more of every image, and {fewest} has "
            f"{len(references[fewest])}."
        )
    return [
        (
            {image: texts[place] for image, texts in references.items()},
            {image: [*texts[:place], *texts[place + 1 :]] for image, texts in references.items()},
        )
        for place in range(len(references[fewest]))
    ]


def _mean_language(rounds: Sequence[Language]) -> measures.Language:
    """The mean over the rounds; the number of different words is rounded."""
    columns = [asdict(each) for each in rounds]
    means: dict[str, Any] = {
        name: None if value is None else fmean(column[name] for column in columns)
        for name, value in columns[0].items()
    }
    return measures.Language(**means | {"vocabulary": round(means["vocabulary"])})
