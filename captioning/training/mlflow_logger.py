"""Lightning's mlflow logger; its model is that of the finished run."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger as LightningLogger


class MLFlowLogger(LightningLogger):
    """Logs to mlflow; ``log_model=true`` keeps the model that was scored, as an artifact.

    Lightning's own ``log_model`` keeps each checkpoint, with the state of the optimiser.

    Args:
        log_model: whether the model is kept.
        settings: those of Lightning's :class:`~pytorch_lightning.loggers.MLFlowLogger`.
    """

    def __init__(self, log_model: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.uploads_model = log_model

    def upload_model(self, folder: Path, metadata: dict[str, Any]) -> None:
        """Keep a model as the folder ``model`` of the run's artifacts.

        Args:
            folder: the files of the model.
            metadata: what is known of it, which the run has already.
        """
        self.experiment.log_artifacts(self.run_id, str(folder), "model")
