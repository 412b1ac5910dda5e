"""Optuna as a sweeper: it searches, remembers every trial on disk, and goes on where it was."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Searches for the settings with the highest score by TPE.

    The same command goes on with its study until ``n_trials`` have ended: a trial that was
    interrupted comes first, with the same values. One that fails is recorded as failed.

    Args:
        n_trials: jobs of the study, over all times that the command is given.
        n_jobs: jobs at once, where the launcher runs several.
        n_startup_trials: random ones at the start.
        seed: of the search.
        storage: the URL of a data base; None is a file in the sweep's folder.
        params: ``{key: values}``, in Hydra's grammar: a choice, ``interval(low, high)`` or
            ``tag(log, interval(low, high))``, of whole numbers where both ends are. Sweeps on the
            command line come on top.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        n_startup_trials: int,
        seed: int,
        storage: str | None,
        params: Mapping[str, Any] | None,
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.n_startup_trials = n_startup_trials
        self.seed = seed
        self.storage = storage
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what :meth:`sweep` needs."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are ``n_trials``."""
        from hydra_plugins.captioning_sweeps._launching import require

        with require("optuna"):
            import optuna
            from optuna.trial import TrialState

        given = [f"{key}={value!s}" for key, value in self.params.items()]
        overrides = {
            each.get_key_element(): each
            for each in OverridesParser.create().parse_overrides([*given, *arguments])
        }
        space = {key: domain(each) for key, each in overrides.items() if each.is_sweep_override()}
        fixed = [
            f"{key}={each.get_value_element_as_str()}"
            for key, each in overrides.items()
            if key not in space
        ]
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=folder.name,
            storage=self.storage or f"sqlite:///{folder / 'optuna.db'}",
            direction="maximize",
            load_if_exists=True,
        )
        begun = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + begun,  # or a study that goes on would draw its first values again
            n_startup_trials=self.n_startup_trials,
            constant_liar=self.n_jobs > 1,
        )
        # With the old values, the job finds its old folder.
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        ended = begun - len(interrupted)
        if begun:
            log.info("%d of %d trials have ended before", ended, self.n_trials)
        while ended < self.n_trials:
            batch = [
                interrupted.pop(0) if interrupted else study.ask(fixed_distributions=space)
                for _ in range(min(self.n_jobs, self.n_trials - ended))
            ]
            returns = self.launcher.launch(
                [[*fixed, *(f"{k}={v}" for k, v in trial.params.items())] for trial in batch],
                initial_job_idx=ended,
            )
            for trial, returned in zip(batch, returns, strict=True):
                score = returned.return_value
                if score is None or math.isnan(score):
                    study.tell(trial.number, state=TrialState.FAIL)
                else:
                    study.tell(trial.number, score)
            ended += len(batch)
        if study.get_trials(states=[TrialState.COMPLETE]):
            best = {"best_value": study.best_value, "best_params": study.best_params}
            OmegaConf.save(OmegaConf.create(best), folder / "optimization_results.yaml")
            log.info("Best, with %.4f: %s", study.best_value, study.best_params)


def domain(override: Override) -> Any:
    """Optuna's distribution for the values of a sweep."""
    from optuna import distributions

    value = override.value()
    if isinstance(value, IntervalSweep):
        ends: tuple[Any, Any] = value.start, value.end
        whole = all(isinstance(end, int) for end in ends)
        kind: Any = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(*ends, log="log" in value.tags)
    choices = override.sweep_iterator(transformer=Transformer.encode)
    return distributions.CategoricalDistribution([str(choice) for choice in choices])
