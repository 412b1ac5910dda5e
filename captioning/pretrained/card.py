"""The model card of an exported model: what it is, how good it is, and how it is used."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

from captioning.captioner import Captioner
from captioning.evaluation.records import decoder_name, parts_of
from captioning.metrics.registry import ordered_scores
from captioning.pretrained.places import LICENCE
from captioning.reporting.arithmetic import count_parameters
from captioning.reporting.results import Results
from captioning.reporting.tables import Cell
from captioning.support.weights import BY_NAME
from captioning.training.lineage import Teacher, earlier_data_of, teachers_of

_TERMS: Final[Mapping[str, str]] = {
    "flickr8k": "Flickr8k (Hodosh, Young and Hockenmaier, JAIR 47, 2013) is for research and "
    "education only, and its photographs belong to their authors on Flickr.",
    "flickr30k": "Flickr30k (Young et al., TACL 2, 2014) is for research and education only, and "
    "its photographs belong to their authors on Flickr.",
    "coco": "The annotations of COCO (Lin et al., ECCV 2014) are licensed under CC BY 4.0, and its "
    "photographs under the terms of Flickr.",
    "scenes": "The scenes were drawn by captioning itself and need no licence.",
}
"""What is known of the terms of data sets."""

_LICENCES: Final[Mapping[str, str]] = {
    "flickr8k": "research-and-education-only",
    "flickr30k": "research-and-education-only",
}
"""The names of the terms of weights that have no licence of their own, by data set."""

_DATASETS: Final[Mapping[str, str]] = {
    "flickr8k": "jxie/flickr8k",
    "flickr30k": "nlphuji/flickr30k",
}
"""The data sets of the hub that have the same images and captions."""

_METRICS: Final = {"BLEU": "bleu", "METEOR": "meteor", "ROUGE-L": "rouge", "CIDEr": "cider",
                   "SPICE": "spice"}  # fmt: skip
"""The hub's names of metrics."""

QUOTES: Final = "'\""


def model_card(captioner: Captioner, name: str, results: Results | None, license: str) -> str:
    """The text of the card, in Markdown with the hub's header.

    Args:
        captioner: the model.
        name: the name of the model.
        results: its scores; None if they are not known, which the card says.
        license: the hub's identifier of the licence of the weights.
    """
    data, sources = _trained_on(captioner, results), _sources(captioner, results)
    parts = [
        f"---\n{_header(name, results, license, sources)}---",
        f"# {name}",
        _summary(captioner, data),
        "## Use",
        _use(name),
        "## Scores",
        _scores(results) if results else "No scores were recorded for these weights.",
        "## Data",
        f"{_data(captioner, results)} {_taught(captioner)}",
        "## Limits",
        "Captions say what such photographs mostly show in the training data, and are wrong for "
        "many others. They repeat the habits of its annotators, such as calling people men or "
        "women by their looks. Do not use them where a mistake harms anybody.",
        "## Licence",
        _licence(license, sources, captioner),
        "## How it was made",
        _origin(captioner, results),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _trained_on(captioner: Captioner, results: Results | None) -> list[str]:
    """The data sets of the run, and before it those of the models that it started from."""
    earlier = earlier_data_of(captioner.run)
    return list(dict.fromkeys([*earlier, *([results.data.name] if results else [])]))


UNKNOWN: Final = "data that was not recorded"


def _sources(captioner: Captioner, results: Results | None) -> list[str]:
    """The data sets of the model and of its teachers, whose terms apply to its weights."""
    of_teachers = [name for teacher in teachers_of(captioner.run) for name in _data_of(teacher)]
    unknown = [UNKNOWN] if _has_unknown_teachers(captioner) else []
    return list(dict.fromkeys([*_trained_on(captioner, results), *of_teachers, *unknown]))


def _data_of(teacher: Teacher) -> Sequence[str]:
    return teacher.data or [UNKNOWN]


def _has_unknown_teachers(captioner: Captioner) -> bool:
    """Whether the model had a teacher, but in a notebook or an earlier version."""
    return captioner.objective.teachers is not None and not teachers_of(captioner.run)


def _taught(captioner: Captioner) -> str:
    """The teachers of the model, in a sentence; nothing without any."""
    if _has_unknown_teachers(captioner):
        return "It also learned from the word probabilities of other models, not recorded here."
    names = [
        f"{each.name} ({'' if each.seed is None else f'seed {each.seed}, '}trained on "
        f"{' and then on '.join(_data_of(each))})"
        for each in teachers_of(captioner.run)
    ]
    return f"It also learned from the word probabilities of {'; '.join(names)}." if names else ""


def _header(name: str, results: Results | None, license: str, data: Sequence[str]) -> str:
    header: dict[str, Any] = {"license": license}
    if license == "other":
        # The hub shows this name, with a link to the file.
        known = (_LICENCES[each] for each in data if each in _LICENCES)
        header |= {"license_name": next(known, "not-stated"), "license_link": LICENCE}
    header |= {
        "language": ["en"],
        "library_name": "captioning",
        "pipeline_tag": "image-to-text",
        "tags": ["image-captioning", "attention"],
    }
    if results is None:
        return _yaml(header)
    header["tags"].append(results.data.name)
    if results.data.name in _DATASETS:
        header["datasets"] = [_DATASETS[results.data.name]]
    scores = [metric for row in results.scores.values() for metric in ordered_scores(row)]
    header["metrics"] = list(dict.fromkeys(map(_type, scores)))
    entries = [
        {
            "task": {"type": "image-to-text", "name": "Image captioning"},
            "dataset": {
                "name": results.data.name,
                "type": _DATASETS.get(results.data.name, results.data.name),
                "split": split,
            },
            "metrics": [
                {"type": _type(metric), "name": metric, "value": round(float(row[metric]), 4)}
                for metric in ordered_scores(row)
            ],
        }
        for split, row in results.scores.items()
    ]
    return _yaml(header | {"model-index": [{"name": name, "results": entries}]})


def _yaml(header: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(header), sort_keys=False))


def _type(metric: str) -> str:
    return _METRICS.get(metric, _METRICS.get(metric.partition("-")[0], metric.lower()))


def _summary(captioner: Captioner, data: Sequence[str]) -> str:
    encoder, hparams = captioner.encoder, dict(captioner.hparams)
    rows, columns = encoder.grid_size
    counts, _ = count_parameters(parts_of(captioner))
    trained = "the encoder too was trained" if captioner.encoder_trains else "it was not trained"
    where = f", trained on {' and then on '.join(data)}" if data else ""
    return (
        f"A model that captions photographs{where}: "
        f"{decoder_name(hparams['model']['_target_'])} "
        f"({counts['decoder'] / 1e6:.1f} M parameters, "
        f"{len(captioner.vocabulary.words):,} words) on {encoder.name}'s grid of {rows} x "
        f"{columns} locations ({counts['encoder'] / 1e6:.1f} M parameters; {trained})."
    )


def _use(name: str) -> str:
    return f"""\
```python
from captioning import Captioner

captioner = Captioner.from_pretrained("FOLDER")  # or "OWNER/{name}" on the hub
```

```sh
python caption.py ckpt=FOLDER images=photo.jpg
```

Nothing in this folder is run as code. Weights of an encoder that it does not contain are fetched
from their publisher, and compared with the fingerprint in `config.json`."""


def _scores(results: Results) -> str:
    lines = []
    for split, row in results.scores.items():
        intervals = results.intervals.get(split, {})
        for metric in ordered_scores(row):
            cell = Cell.of_score(row[metric], intervals.get(metric))
            lines.append((split, metric, cell.text, cell.interval or ""))
    decoding = results.decoding.label if results.decoding else "unknown"
    return (
        f"{_table(('split', 'metric', 'score x 100', '95 % interval'), lines)}\n\n"
        f"Captions were decoded without teacher forcing ({decoding}), and scored against all "
        "references by the original COCO caption tools. Intervals are of a bootstrap over the "
        "images; another seed of the training varies, too."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _data(captioner: Captioner, results: Results | None) -> str:
    if results is None:
        return "The data set was not recorded."
    images = ", ".join(f"{count:,} {split}" for split, count in results.data.images.items())
    earlier = [name for name in _trained_on(captioner, results) if name != results.data.name]
    vocabulary = (
        f"The training started from a model of {' and '.join(earlier)}, whose vocabulary it has, "
        "perhaps with further words."
        if earlier
        else "The vocabulary is that of the training split."
    )
    return (
        f"{results.data.name}: {images} images (fingerprint `{results.data.fingerprint[:16]}`). "
        f"{vocabulary}"
    )


def terms(captioner: Captioner, results: Results | None) -> str:
    """The terms of weights that have no licence of their own, as a page in Markdown."""
    text = _licence("other", _sources(captioner, results), captioner)
    return f"# Terms of these weights\n\n{text}\n"


def _licence(license: str, data: Sequence[str], captioner: Captioner) -> str:
    of_weights = (
        "These weights have no licence of their own: use them as far as the terms of what they "
        "were trained on allow."
        if license == "other"
        else f"The weights are licensed under `{license}`."
    )
    others = "The terms of the training data apply, too."
    of_data = " ".join(dict.fromkeys(_TERMS.get(each, others) for each in data)) or others
    encoder = captioner.encoder
    of_encoder = (
        f" The weights of {encoder.name} are those of their publishers ({encoder.weights})."
        if encoder.weights in BY_NAME and encoder.weights != "random"
        else ""
    )
    return f"{of_weights} {of_data}{of_encoder} The code of captioning is licensed under MIT."


def _origin(captioner: Captioner, results: Results | None) -> str:
    seed = captioner.run.get("seed")
    code = (
        "With captioning, a codebase around "
        "[Show, Attend and Tell](https://arxiv.org/abs/1502.03044) (Xu et al., ICML 2015)"
    )
    if results is None:
        return f"{code}, seed {seed}."
    versions = ", ".join(
        f"{package} {results.versions[package]}"
        for package in ("python", "captioning", "torch", "torchvision")
        if package in results.versions
    )
    arithmetic = results.arithmetic_texts
    commit = f", commit `{results.commit[:12]}`" if results.commit else ""
    return (
        f"{code}:\n\n```sh\n{_without_paths(results.command)}\n```\n\n"
        f"Seed {seed}{commit}; {versions}; scored {results.created:%Y-%m-%d} in "
        f"{arithmetic['precision']} on {arithmetic['device']}."
    )


def _without_paths(command: str) -> str:
    """A command line in which settings that are paths have the value ``...``."""
    words = []
    for word in shlex.split(command):
        key, equals, value = word.partition("=")
        plain = f"{key}={value.strip(QUOTES)}"
        words.append(word if not equals else f"{key}=..." if "/" in value else plain)
    return shlex.join(words).replace("'", "")
