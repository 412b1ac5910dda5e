"""Which settings may change when a run is resumed, in train.py and in a notebook."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from captioning.support.errors import CaptioningError
from captioning.training.resumable_settings import check_same_settings

CONF = Path(__file__).parents[2] / "conf"

pytestmark = [
    *(pytest.mark.filterwarnings(each) for each in tiny.QUIET),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=a", *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return dict(plain)


@pytest.mark.parametrize(
    "overrides",
    [
        ["name=b", "data.root=elsewhere", "data.workers=5", "data.cache=there"],
        ["trainer.max_epochs=20", "callbacks.early_stopping.patience=9"],
        ["trainer.devices=2", "trainer.accelerator=cpu", "+trainer.strategy=ddp", "backend=torch"],
        [
            "logger=tensorboard",
            "decoding=greedy",
            "views=[flip]",
            "extra_metrics=[SPICE]",
            "encoder.weights=a.pth",
        ],
        ["~callbacks.attention_images", "callbacks.epoch_log=null"],
        ["+callbacks.rates._target_=pytorch_lightning.callbacks.LearningRateMonitor"],
        ["+callbacks.best_checkpoint.dirpath=/moved"],
    ],
)
def test_what_changes_no_step_of_training_may_change(overrides: list[str]) -> None:
    check_same_settings(composed(), composed(*overrides), "resume=x")
    check_same_settings(composed(*overrides), composed(), "resume=x")


def test_runs_from_before_there_were_views_go_on() -> None:
    before = composed()
    del before["views"], before["data"]["train_views"]
    check_same_settings(before, composed(), "resume=x")
    with pytest.raises(CaptioningError, match=r"data\.train_views="):
        check_same_settings(before, composed("data.train_views=[flip]"), "resume=x")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=0.05", "optimizer.lr=0.05 in place of 0.001"),
        ("seed=3", "seed=3 in place of 0"),
        ("optimizer=rmsprop", "optimizer._target_=torch.optim.RMSprop in place of"),
        ("scheduler=constant", "scheduler._target_="),
        ("model.dropout=0.1", "model.dropout=0.1 in place of"),
        ("data.train_views=[original,flip]", 'data.train_views=["original", "flip"] in place of'),
        ("data.batch_size=8", "data.batch_size=8 in place of 16"),
        ("validation.max_length=9", "validation.max_length=9 in place of"),
        ("~callbacks.ema", "callbacks.ema.decay=null in place of 0.998"),
        ("callbacks.best_checkpoint.monitor=dev/loss", "monitor=dev/loss in place of dev/CIDEr"),
        ("+trainer.accumulate_grad_batches=2", "accumulate_grad_batches=2 in place of null"),
    ],
)
def test_every_other_setting_is_named_with_both_values(override: str, said: str) -> None:
    with pytest.raises(CaptioningError, match=r"^resume=x: that run has other settings: ") as error:
        check_same_settings(composed(), composed(override), "resume=x")
    assert said in str(error.value)


def test_all_of_several_are_named_up_to_a_length() -> None:
    with pytest.raises(CaptioningError) as error:
        check_same_settings(composed(), composed("optimizer.lr=1", "seed=1"), "resume=x")
    assert "optimizer.lr=1 in place of 0.001, " in str(error.value)
    assert "seed=1 in place of 0" in str(error.value)
    with pytest.raises(CaptioningError, match=r"and [0-9]+ more") as error:
        check_same_settings(composed(), composed("experiment=show_attend_and_tell"), "resume=x")
    assert len(str(error.value)) < 700


def test_a_notebook_is_told_of_another_optimiser(drawn_pictures: Path, tmp_path: Path) -> None:
    data = tiny.data(drawn_pictures, tmp_path)
    kept = ModelCheckpoint(tmp_path, filename="kept")
    tiny.trainer(tmp_path, kept, enable_checkpointing=True).fit(tiny.captioner(data), data)
    path = str(tmp_path / "kept.ckpt")
    adamw = {"_target_": "torch.optim.AdamW", "lr": 0.05}
    for optimizer, said in (("rmsprop", "torch.optim.RMSprop in place of"), (adamw, "lr=0.05")):
        other = tiny.captioner(data, optimizer=optimizer)
        with pytest.raises(CaptioningError, match="ckpt_path: that run has other settings") as told:
            tiny.trainer(tmp_path, max_epochs=2).fit(other, data, ckpt_path=path)
        assert said in str(told.value)
        tiny.trainer(tmp_path).validate(other, data, ckpt_path=path, verbose=False)
