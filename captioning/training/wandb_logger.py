"""Lightning's wandb logger; its artifact is the model of the finished run."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger as LightningLogger


class WandbLogger(LightningLogger):
    """Logs to wandb; ``log_model=true`` uploads the model that was scored, with its scores.

    Lightning's own ``log_model`` uploads each checkpoint, with the optimiser and the encoder, and
    refuses to do so offline. Here the artifact is made when the run is finished; that of an offline
    run goes to wandb with ``wandb sync``.

    Args:
        name: the name of the run.
        project: the project to which it belongs.
        log_model: whether the model is uploaded.
        settings: those of Lightning's :class:`~pytorch_lightning.loggers.WandbLogger`, and of
            ``wandb.init``.
    """

    def __init__(
        self, name: str, project: str = "captioning", log_model: bool = False, **settings: Any
    ) -> None:
        super().__init__(name=name, project=project, **settings)
        self.uploads_model = log_model

    def upload_model(self, folder: Path, metadata: dict[str, Any]) -> None:
        """Upload a model as an artifact of the type ``model``.

        Args:
            folder: the files of the model, which has its name and may be removed afterwards.
            metadata: what wandb shows beside the artifact.
        """
        import wandb

        artifact = wandb.Artifact(folder.name, "model", metadata=metadata)
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact, aliases=["latest", "best"])
