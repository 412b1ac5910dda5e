"""Statistics of captions, counted by hand."""

import pytest

from captioning.metrics.language import Language, describe_each, describe_language

CAPTIONS = ["a dog runs", "a dog sits", "a <unk> runs", ""]


def test_counted_by_hand() -> None:
    # 9 words: a a a dog dog runs runs sits <unk>. 6 pairs: a-dog twice, dog-runs, dog-sits,
    # a-<unk>, <unk>-runs.
    found = describe_language(
        CAPTIONS, train=["a dog runs", "a  dog barks"], vocabulary_size=40, unknown="<unk>"
    )
    assert found == Language(
        distinct_1=5 / 9,
        distinct_2=5 / 6,
        vocabulary=4,
        vocabulary_share=4 / 40,
        length=9 / 4,
        novel=3 / 4,
        unknown=1 / 9,
        bad_endings=0.0,
    )


def test_what_is_not_known_is_not_claimed() -> None:
    found = describe_language(CAPTIONS)
    assert found.vocabulary == 5  # nobody said that <unk> is no word
    assert (found.vocabulary_share, found.novel, found.unknown) == (None, None, None)


def test_what_each_caption_is_like_averages_to_what_all_are() -> None:
    train = ["a dog runs", "a  dog barks"]
    captions = {str(place): caption for place, caption in enumerate(CAPTIONS)}
    each = describe_each(captions, train=train, unknown="<unk>")
    assert each == {
        "0": {"length": 3, "novel": False, "unknown": 0},
        "1": {"length": 3, "novel": True, "unknown": 0},
        "2": {"length": 3, "novel": True, "unknown": 1 / 3},
        "3": {"length": 0, "novel": True, "unknown": 0},
    }
    of_all = describe_language(CAPTIONS, train=train)
    assert of_all.length == sum(found["length"] for found in each.values()) / 4
    assert of_all.novel == sum(found["novel"] for found in each.values()) / 4
    assert describe_each({"0": "a dog"}) == {"0": {"length": 2}}


def test_pairs_do_not_reach_over_the_end_of_a_caption() -> None:
    assert describe_language(["a b", "b a", "a b"]).distinct_2 == pytest.approx(2 / 3)


def test_captions_that_are_cut_short_end_badly() -> None:
    captions = ["a dog on a", "a dog with", "the a dog", "a cathedral", "", "a man holding the "]
    assert describe_language(captions).bad_endings == 3 / 6


@pytest.mark.parametrize("captions", [[], ["", " "]])
def test_nothing_said(captions: list[str]) -> None:
    found = describe_language(captions, train=[], vocabulary_size=3, unknown="<unk>")
    assert found.length == found.distinct_1 == found.distinct_2 == found.unknown == 0
    assert found.bad_endings == 0
    assert found.novel == (1 if captions else 0)
