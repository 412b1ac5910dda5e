"""How a captioner is saved and loaded: checkpoints, and models to give away."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn

from captioning.captioners.choices import NAMES
from captioning.captioners.model import CaptionModel
from captioning.checkpoints import (
    FORMAT,
    check_can_go_on,
    check_complete,
    check_content,
    check_weights,
    has_trained_encoder,
    read_checkpoint,
    restoring,
)
from captioning.kernels.backend import Backend
from captioning.pretrained.places import DEFAULT, find_model, find_pretrained, size_of
from captioning.reporting.results import Results
from captioning.support.build import expand, validated
from captioning.support.errors import CaptioningError
from captioning.support.state_dicts import fingerprint
from captioning.support.trust import check_trusted, classes_of_a_checkpoint, packages
from captioning.support.weights import BY_NAME
from captioning.training.checkpoint_io import make_checkpoints_atomic
from captioning.training.moved_checkpoints import find_moved_checkpoints
from captioning.training.resumable_settings import check_same_settings

Loaded = TypeVar("Loaded", bound="Saving")  # beartype does not support typing.Self here


class Saving(CaptionModel):
    """The hooks of Lightning's checkpoints, and the ways in which a captioner is loaded.

    Attributes:
        noise_seed: the seed of dropout, with which a training goes on.
    """

    noise_seed: int | None

    def setup(self, stage: str) -> None:
        """Let the trainer write whole checkpoints only."""
        super().setup(stage)
        make_checkpoints_atomic(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        encoder = self.encoder
        if "callbacks" not in checkpoint:
            self._put_average(checkpoint)
        checkpoint["format"] = FORMAT
        checkpoint["run"] = dict(self.run)
        checkpoint["classes"] = self.classes
        checkpoint["noise_seed"] = self.noise_seed
        metrics = self._trainer.callback_metrics if self._trainer else {}  # a Strategy saves, too
        checkpoint["epoch_means"] = {
            name: float(value)
            for name, value in metrics.items()
            if name.startswith("train/") and name.endswith("_epoch")
        }
        checkpoint["encoder"] = {
            "fingerprint": encoder.fingerprint,
            "weights_source": encoder.weights_source,
            "state_dict": encoder.state_dict() if self._contains_encoder() else {},
        }

    def _contains_encoder(self) -> bool:
        """Whether a checkpoint contains a frozen encoder's weights, since nothing else has them."""
        return not self.encoder_trains and self.encoder.weights not in BY_NAME

    def _put_average(self, checkpoint: dict[str, Any]) -> None:
        """Put the moving average of the weights into a checkpoint of the weights alone.

        For such a checkpoint, Lightning does not call the callback that has the average.
        """
        for callback in self._trainer.callbacks if self._trainer else ():  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                for state in ("current_model_state", "averaging_state"):
                    del checkpoint[state]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore a checkpoint that the trainer was given as ``ckpt_path``.

        Raises:
            CaptioningError: the checkpoint is none of a Captioner, is of version 0.1, or has
                another vocabulary or encoder than this captioner, for which the trainer's data
                module prepares the batches; or it is trained further, and has other settings.
        """
        check_content(checkpoint, "ckpt_path")
        check_complete(checkpoint, "ckpt_path")
        saved = checkpoint["encoder"]
        if checkpoint["hyper_parameters"]["vocabulary"] != self.vocabulary.to_list():
            different = "another vocabulary than this captioner"
        elif (
            not has_trained_encoder(checkpoint) and saved["fingerprint"] != self.encoder.fingerprint
        ):
            different = (
                f"another encoder than {self.encoder.name} with weights from "
                f"{self.encoder.weights_source}"
            )
        else:
            if self.trainer.state.fn == TrainerFn.FITTING:
                check_can_go_on(checkpoint, f"ckpt_path={self.trainer.ckpt_path}")
                check_same_settings(
                    without_vocabulary(checkpoint["hyper_parameters"]),
                    without_vocabulary(self.hparams),
                    "ckpt_path",
                )
                find_moved_checkpoints(checkpoint, self.trainer.checkpoint_callbacks)
            return self._restore(checkpoint)
        raise CaptioningError(
            f"ckpt_path: that checkpoint has {different}: use the same one, or the captioner that "
            "Captioner.load_from_checkpoint(ckpt_path) returns."
        )

    @classmethod
    def _of_settings(cls: type[Loaded], checkpoint: Mapping[str, Any], backend: Backend) -> Loaded:
        """A new captioner with the settings of a checkpoint.

        Its encoder has the weights that the settings name, unless the checkpoint contains others.

        Raises:
            CaptioningError: the settings are wrong, or name a file of weights.
        """
        settings = validated(cls, checkpoint["hyper_parameters"], "hyper_parameters", set())
        encoder, contained = encoder_of(checkpoint)
        first = encoder | {"weights": "random"} if contained else encoder
        captioner = cls(**settings | {"encoder": first, "backend": backend})
        if contained:  # a checkpoint of this captioner names them as this one does
            captioner.hparams["encoder"] = encoder
            built, found = captioner.network, checkpoint["encoder"]["fingerprint"]
            known = {"random": built.fingerprint}
            if built.imagenet is not None and built.imagenet.archive is not None:
                known["imagenet"] = built.imagenet.archive.fingerprint
            asked = encoder.get("weights")
            names = (name for name, its in known.items() if its == found and asked in (None, name))
            built.weights = next(names, "contained")
        for key in ("optimizer", "scheduler"):  # imported when the captioner is trained further
            spec = captioner.hparams[key]
            check_trusted(str(spec.get("_target_") or ""), f"{key}._target_")
        return captioner

    def _check_encoder(self, saved: Mapping[str, Any]) -> None:
        """Check the weights of the encoder, in a checkpoint or named by it.

        Raises:
            CaptioningError: they are not those of its fingerprint, by which the cache of features
                is found.
        """
        weights, encoder = saved["state_dict"], self.encoder
        if weights:
            check_weights(encoder, weights)
            if fingerprint(encoder.name, weights) != saved["fingerprint"]:
                raise CaptioningError(
                    "its encoder has other weights than those of its fingerprint."
                )
        elif not self.encoder_trains and encoder.fingerprint != saved["fingerprint"]:
            raise CaptioningError(
                f"it was trained with other weights of {encoder.name} than encoder.weights="
                f"{encoder.weights} gives here: its fingerprint is another one."
            )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Restore what a checkpoint has in addition to the state dict that Lightning restores."""
        self.run = checkpoint["run"]
        self.noise_seed = checkpoint["noise_seed"]
        saved = checkpoint["encoder"]
        if saved["state_dict"]:
            self.encoder.load_state_dict(saved["state_dict"])
        self.encoder.fingerprint = saved["fingerprint"]
        self.encoder.weights_source = saved["weights_source"]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # what it does not take, it does not need
        cls: type[Loaded],
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        backend: Backend = "auto",
        trust: str | Sequence[str] | None = None,
    ) -> Loaded:
        """Load a captioner from a checkpoint file alone; like a new one, it is in training mode.

        A checkpoint names the classes of its parts. Those of this package and of ``torch.optim``,
        and those that were built in this process from settings of your own, are imported. Any
        others are refused, unless you name their package.

        Args:
            checkpoint_path: the file, for instance a run's ``best.ckpt``; or a model as for
                :meth:`from_pretrained`, with ``hf://`` before a name on the hub.
            map_location: the device to move the captioner to.
            backend: which kernels compute it, independent of the training's.
            trust: the packages or modules whose classes it may name, too: ``"my_package"``. Their
                code is run, with the arguments that the checkpoint has.

        Raises:
            CaptioningError: there is no such file, it is damaged, it is not a checkpoint of a
                Captioner, or it names a class that is not trusted.
        """
        trusted = packages(trust)
        name, place = f"ckpt={checkpoint_path}", find_model(checkpoint_path)
        checkpoint = read_checkpoint(place)
        check_complete(checkpoint, name)
        with restoring(name, size_of(place)):
            with classes_of_a_checkpoint(trusted):
                captioner = cls._of_settings(checkpoint, backend)
            check_classes(checkpoint.get("classes", {}), captioner.classes)
            check_weights(captioner, checkpoint["state_dict"])
            captioner._check_encoder(checkpoint["encoder"])
            captioner._restore(checkpoint)
            captioner.load_state_dict(checkpoint["state_dict"])
        return captioner.to(map_location)

    @classmethod
    def from_pretrained(
        cls: type[Loaded],
        model: str | Path = DEFAULT,
        *,
        revision: str | None = None,
        map_location: Any = "cpu",
        backend: Backend = "auto",
        trust: str | Sequence[str] | None = None,
    ) -> Loaded:
        """Load an exported model; nothing in it is run, and it is checked like a checkpoint.

        Args:
            model: the name of a model that comes with the package; a folder that was exported; or
                ``OWNER/NAME`` (``hf://OWNER/NAME``) on the Hugging Face hub.
            revision: a branch, tag or commit on the hub.
            map_location: as for :meth:`load_from_checkpoint`, like the following.
            backend: as for :meth:`load_from_checkpoint`.
            trust: as for :meth:`load_from_checkpoint`.

        Raises:
            CaptioningError: there is no such model, a file of it is damaged or missing, its encoder
                cannot be found, or it names a class that is not trusted.
        """
        place = find_pretrained(model, revision)
        return cls.load_from_checkpoint(place, map_location, backend, trust)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        half: bool = True,
        encoder: bool = False,
        results: Results | None = None,
        license: str = "other",
    ) -> None:
        """Write the folder of a model to give away; see :func:`captioning.pretrained.export.save`.

        Args:
            folder: is made if it is missing; files of an earlier model in it are replaced.
            half: whether the weights are rounded to half precision.
            encoder: whether a frozen encoder is contained even if its weights have a name.
            results: the scores for the model card, as ``read_results("results.json")`` gives them.
            license: the hub's identifier of the licence of the weights.

        Raises:
            CaptioningError: the folder cannot be written, or a part was replaced by one of another
                class than the settings say.
        """
        check_classes(self.classes, self.built_classes)
        from captioning.captioner import Captioner
        from captioning.pretrained.export import save

        assert isinstance(self, Captioner)
        save(self, Path(folder), half=half, encoder=encoder, results=results, license=license)

    def push_to_hub(self, name: str, *, private: bool | None = None, **options: Any) -> str:
        """Give the model to the Hugging Face hub; returns the address of the commit.

        Args:
            name: ``OWNER/NAME``; the repository is made if there is none.
            private: whether a new repository is private; None: as the owner's settings say.
            options: as for :meth:`save_pretrained`.

        Raises:
            CaptioningError: huggingface_hub is not installed, or the hub refuses it.
        """
        from captioning.pretrained.hub import push
        from captioning.support.scratch import scratch_folder

        with scratch_folder() as folder:
            self.save_pretrained(folder / "model", **options)
            return push(folder / "model", name, private=private)


def check_classes(saved: Mapping[str, str], built: Mapping[str, str]) -> None:
    """Check that the parts of a checkpoint were of the classes that its settings name.

    Args:
        saved: the ``classes`` of the captioner that was saved; without those of early checkpoints.
        built: those of the captioner that was built from the settings.

    Raises:
        CaptioningError: a part was replaced by one of another class, which other code would
            compute from the same weights.
    """
    for name, path in built.items():
        if saved.get(name, path) != path:
            raise CaptioningError(
                f"the {name} of its settings, a {path}, was replaced by a {saved[name]}: give that "
                f"class to the captioner, as {name}=, and train again."
            )


def without_vocabulary(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a captioner that are settings."""
    return {name: value for name, value in settings.items() if name != "vocabulary"}


def encoder_of(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The settings of a checkpoint's encoder, and whether the checkpoint contains its weights.

    Raises:
        CaptioningError: it does not, and the settings name a file of weights.
    """
    named = checkpoint["hyper_parameters"].get("encoder", "vgg16")
    encoder = expand(named, NAMES["encoder"], "encoder")
    contained = bool(checkpoint["encoder"]["state_dict"]) or has_trained_encoder(checkpoint)
    if not contained and encoder.get("weights", BY_NAME[0]) not in BY_NAME:
        raise CaptioningError(
            f"it lacks the weights of its encoder, and names a file ({encoder['weights']}), "
            "which is not read for a checkpoint."
        )
    return encoder, contained
