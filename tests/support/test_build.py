"""Building from a configuration: what is made, and the one sentence that each mistake gets."""

from typing import Any

import pytest
import torch

from captioning.data.cleaning import Cleaner
from captioning.data.datamodule import CaptionDataModule
from captioning.decoding import Beam, Decoding
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.support.build import build, expand, only_groups, parameters_of, validated
from captioning.support.errors import CaptioningError

BEAM = "captioning.decoding.Beam"
ATTENTION = "captioning.models.decoders.attn_lstm.AttentionLSTM"
SMALL = {"_target_": ATTENTION, "hidden_dim": 4, "embed_dim": 4, "attention_dim": 4}
SIZES = {"vocabulary_size": 10, "channels": 6}


def test_the_class_is_built_with_its_arguments_and_its_defaults() -> None:
    beam = build({"_target_": BEAM, "beam_size": 7}, Decoding, "decoding")
    assert beam == Beam(beam_size=7)
    decoder = build(SMALL | {"gate": "scalar"}, Decoder, "model", **SIZES)
    assert isinstance(decoder, AttentionLSTM)
    assert decoder.embedding.weight.shape == (10, 4)
    assert decoder.gate is not None
    assert decoder.gate.out_features == 1


def test_values_become_the_type_of_the_signature() -> None:
    """A command line and YAML give 1e-3 as text, 5.0 for 5, and a dictionary for a dataclass."""
    beam = build({"_target_": BEAM, "beam_size": 5.0, "length_penalty": "7e-1"}, Decoding, "d")
    assert beam == Beam(beam_size=5, length_penalty=0.7)
    assert isinstance(beam.beam_size, int)
    data = build(
        {
            "_target_": "captioning.data.datamodule.CaptionDataModule",
            "cleaner": {"drop_numbers": True},
            "max_size": None,
        },
        CaptionDataModule,
        "data",
    )
    assert data.cleaner == Cleaner(drop_numbers=True)
    assert data.max_size is None


def test_the_configuration_stays_as_it_was() -> None:
    spec = {"_target_": BEAM, "beam_size": "3"}
    build(spec, Decoding, "decoding")
    assert spec == {"_target_": BEAM, "beam_size": "3"}


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        # An argument that the class does not have: those that it has are named.
        (
            {"hiden_dim": 3},
            ["model.hiden_dim: AttentionLSTM", "did you mean hidden_dim? It has"],
        ),
        (
            {"gpus": 3},
            ["model.gpus: AttentionLSTM has no such setting; it has attention", "add ~model.gpus"],
        ),
        # What is given by the program is not the user's to set, and not offered.
        ({"channels": 3}, ["model.channels", "no such setting"]),
        # A wrong type or a wrong choice.
        ({"hidden_dim": "wide"}, ["model.hidden_dim=wide", "integer"]),
        ({"hidden_dim": 2.5}, ["model.hidden_dim=2.5", "integer"]),
        ({"hidden_dim": None}, ["model.hidden_dim=None", "integer"]),
        ({"dropout": [0.1]}, ["model.dropout=[0.1]", "number"]),
        ({"deep_output": "perhaps"}, ["model.deep_output=perhaps", "boolean"]),
        ({"gate": "open"}, ["model.gate=open", "'scalar'", "'channel'", "'none'"]),
        # Of the right type, and yet refused by the class.
        ({"attention_dim": 0}, ["model.attention_dim=0", "1 or more"]),
        # What is named is not to be had, or not what is asked for.
        (
            {"_target_": "nowhere.Decoder"},
            ["model._target_=nowhere.Decoder", "no such class", "the folder that has nowhere"],
        ),
        ({"_target_": "captioning.models.decoders.lstm.LSTN"}, ["LSTN", "no such class"]),
        ({"_target_": "AttentionLSTM"}, ["model._target_=AttentionLSTM", "no such class"]),
        ({"_target_": ".lstm.LSTM"}, ["model._target_=.lstm.LSTM", "no such class"]),
        ({"_target_": BEAM}, [f"model._target_={BEAM}", "not a Decoder"]),
        ({"_target_": "os.system"}, ["model._target_=os.system", "not a Decoder"]),
        ({"_target_": "captioning.models.decoders.base.PAD"}, ["not a Decoder"]),
        ({"_target_": "captioning.models.decoders.base.Decoder"}, ["abstract", "subclass"]),
        ({"_target_": ""}, ["model._target_ is missing", "Decoder"]),
        ({"_target_": None}, ["model._target_ is missing", "Decoder"]),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(changed: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(CaptioningError) as error:
        build(SMALL | changed, Decoder, "model", **SIZES)
    message = str(error.value)
    assert message.count("\n") == 0
    assert all(part in message for part in parts), message
    offered = message.lower().partition("it has")[2].replace(",", "").split()
    assert not {"channels", "vocabulary_size"} & set(offered)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(CaptioningError, match=r"model.vocabulary_size is missing: AttentionLSTM"):
        build(SMALL, Decoder, "model", channels=6)


def test_settings_within_a_setting_are_checked_too() -> None:
    data = {"_target_": "captioning.data.datamodule.CaptionDataModule"}
    with pytest.raises(CaptioningError, match=r"data.cleaner.lowercas: Cleaner .* lowercase"):
        build(data | {"cleaner": {"lowercas": True}}, CaptionDataModule, "data")
    with pytest.raises(CaptioningError, match=r"data.cleaner.lowercase=perhaps: .*boolean"):
        build(data | {"cleaner": {"lowercase": "perhaps"}}, CaptionDataModule, "data")


def test_a_value_that_another_library_refuses_is_a_sentence_too() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    spec = {"_target_": "torch.optim.AdamW", "lr": -1.0}
    with pytest.raises(CaptioningError, match=r"optimizer: AdamW .*learning rate: -1"):
        build(spec, torch.optim.Optimizer, "optimizer", params=parameters)


def test_a_type_that_a_configuration_cannot_have_is_not_offered() -> None:
    """AdamW's learning rate may be a tensor, which nobody can write on a command line."""
    spec = {"_target_": "torch.optim.AdamW", "lr": "fast"}
    with pytest.raises(CaptioningError, match=r"^optimizer.lr=fast: [^;]* number\.$"):
        build(spec, torch.optim.Optimizer, "optimizer", params=[])


def test_a_setting_of_several_types_names_the_choices_of_each() -> None:
    class Compiled:
        def __init__(self, mode: bool | int) -> None:
            self.mode = mode

    with pytest.raises(CaptioningError, match=r"compile.mode=maybe: .*boolean.*; or .*integer"):
        validated(Compiled, {"mode": "maybe"}, "compile", set())


def test_a_type_that_only_checkers_can_see_is_not_checked() -> None:
    """Lightning's wandb logger imports its own argument types for type checkers alone."""

    class Hidden:
        def __init__(self, run: "Unseen | None" = None, size: int = 3) -> None:  # noqa: F821
            self.run, self.size = run, size

    assert validated(Hidden, {"run": "any", "size": "4"}, "h", set()) == {"run": "any", "size": 4}
    with pytest.raises(CaptioningError, match=r"h.size=four"):
        validated(Hidden, {"size": "four"}, "h", set())


class Base:
    """A base that knows of no other setting than its own."""

    def __init__(self, width: int, depth: int = 2) -> None:
        self.width, self.depth = width, depth


class Middle(Base):
    """Takes what its base takes, without repeating it."""

    def __init__(self, *, height: float = 1.0, **base: Any) -> None:
        super().__init__(**base)
        self.height = height


class Leaf(Middle):
    """Likewise, and gives its base one argument itself."""

    def __init__(self, name: str = "leaf", **base: Any) -> None:
        super().__init__(width=3, **base)
        self.name = name


class Other:
    """Takes no part in passing arguments on, and has an argument of its own."""

    def __init__(self, depth: int = 0, unrelated: int = 0) -> None: ...


LEAF = {"_target_": f"{__name__}.Leaf"}


def test_what_is_passed_on_to_a_base_is_checked_as_its_own() -> None:
    built = build(LEAF | {"depth": "5", "height": "2e-1", "name": "oak"}, Base, "tree")
    assert vars(built) == {"width": 3, "depth": 5, "height": 0.2, "name": "oak"}
    with pytest.raises(CaptioningError, match=r"tree.depth=deep: .*integer"):
        build(LEAF | {"depth": "deep"}, Base, "tree")
    with pytest.raises(CaptioningError, match=r"tree.hieght: Leaf .* did you mean height\? It has"):
        build(LEAF | {"hieght": 1}, Base, "tree")
    with pytest.raises(CaptioningError, match=r"tree.unrelated: Leaf has no such setting"):
        build(LEAF | {"unrelated": 1}, Base, "tree")


def test_what_a_base_needs_is_missing_only_where_the_class_itself_asks_for_it() -> None:
    assert build(LEAF, Base, "tree").width == 3
    with pytest.raises(CaptioningError, match=r"tree.width is missing: Base needs it"):
        build({"_target_": f"{__name__}.Base"}, Base, "tree")


def test_keyword_arguments_end_where_a_constructor_takes_none() -> None:
    class Mixed(Base, Other):
        """Base takes no further arguments, so that those of Other are out of reach."""

        def __init__(self, **base: Any) -> None:
            super().__init__(**base)

    assert set(parameters_of(Mixed)[0]) == {"width", "depth"}
    assert parameters_of(Mixed)[0]["depth"].default == 2
    assert parameters_of(Mixed)[1]["depth"] is int


def test_a_module_that_swallows_keywords_is_offered_none() -> None:
    """``torch.nn.Module`` takes any keyword, and complains of it in a long traceback."""

    class Swallowing(torch.nn.Module):
        def __init__(self, size: int = 1, **rest: Any) -> None:
            super().__init__()

    with pytest.raises(CaptioningError, match=r"m.seize: Swallowing .*did you mean size\? It has"):
        validated(Swallowing, {"seize": 2}, "m", set())


NAMES = {"wide": f"{__name__}.Base", "leaf": f"{__name__}.Leaf"}


@pytest.mark.parametrize(
    "spec",
    [
        *("leaf", {"_target_": "leaf"}, f"{__name__}.Leaf", {"_target_": f"{__name__}.Leaf"}),
        *(Leaf, {"_target_": Leaf}),
    ],
)
def test_a_short_name_or_a_class_stands_for_a_dotted_path(spec: Any) -> None:
    assert type(build(spec, Base, "tree", names=NAMES)) is Leaf
    assert expand(spec, NAMES, "tree") == LEAF


def test_a_class_within_a_setting_is_named_by_its_path() -> None:
    spec = {"_target_": "leaf", "attention": Leaf, "parts": {"_target_": Leaf}}
    path = f"{__name__}.Leaf"
    within = {"attention": path, "parts": {"_target_": path}}
    assert expand(spec, NAMES, "tree") == {"_target_": path} | within


def test_what_no_checkpoint_could_name_is_refused() -> None:
    class Hidden(Leaf):
        pass

    with pytest.raises(CaptioningError, match=r"tree=.*Hidden: .*define it at the top of a module"):
        expand(Hidden, {}, "tree")
    with pytest.raises(CaptioningError, match=r"tree: an object, a Cleaner, .*give its class"):
        expand(Cleaner(), {}, "tree")


def test_a_short_name_that_there_is_not_is_answered_with_the_nearest() -> None:
    message = r"tree=leef: there is no such choice; did you mean leaf\? There are leaf, wide"
    with pytest.raises(CaptioningError, match=message):
        build("leef", Base, "tree", names=NAMES)
    with pytest.raises(CaptioningError, match=r"tree._target_=oak: .*; there are leaf, wide"):
        build({"_target_": "oak"}, Base, "tree", names=NAMES)
    with pytest.raises(CaptioningError, match=r"tree._target_=leaf: no such class"):
        build("leaf", Base, "tree")  # where the caller allows no short names


def test_a_group_that_nothing_reads_is_refused() -> None:
    only_groups({"model": {}, "seed": 1}, ("model", "data"))
    with pytest.raises(CaptioningError, match=r"modle: no such setting; did you mean model\?"):
        only_groups({"modle": {}}, ("model", "data"))
    with pytest.raises(CaptioningError, match=r"schedule: this setting is now called scheduler"):
        only_groups({"schedule": {"warmup": 0.1}}, ("scheduler",))


def test_settings_without_a_group_have_no_prefix() -> None:
    with pytest.raises(CaptioningError, match=r"^patience: this setting is now called callbacks"):
        validated(Base, {"patience": 3}, "", set())
    with pytest.raises(CaptioningError, match=r"^widht: no such setting; did you mean width\?"):
        validated(Base, {"widht": 3}, "", set())
    with pytest.raises(CaptioningError, match=r"^width=x: "):
        validated(Base, {"width": "x"}, "", set())
