"""Optuna as a sweeper: it searches, remembers every trial on disk, and goes on where it was."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
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
    interrupted comes first, with the same values. One that fails is recorded as failed. Trials of
    another space count where they lie in the new one.

    Args:
        n_trials: jobs of the study, over all times that the command is given.
        n_jobs: jobs at once, where the launcher runs several.
        n_startup_trials: random ones at the start.
        seed: of the search.
        storage: the URL of a data base; None is a file in the sweep's folder.
        params: ``{key: values}``, in Hydra's grammar: a choice, ``interval(low, high)``, of whole
            numbers ``int(interval(low, high))``, or ``tag(log, ...)`` of either. Sweeps on the
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
        fixed = [str(each.input_line) for key, each in overrides.items() if key not in space]
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = self.storage or f"sqlite:///{folder / 'optuna.db'}"
        study = open_study(storage, folder.name, space)
        begun = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + begun,  # or a study that goes on would draw its first values again
            n_startup_trials=self.n_startup_trials,
            constant_liar=self.n_jobs > 1,
        )
        # With the old values, the job finds its old folder. Those without all values never began.
        running = study.get_trials(states=[TrialState.RUNNING])
        interrupted = [trial for trial in running if trial.params.keys() == space.keys()]
        ended = sum(trial.state.is_finished() for trial in study.trials)
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
                failed = score is None or math.isnan(score)
                study.tell(
                    trial.number,
                    None if failed else score,
                    state=TrialState.FAIL if failed else TrialState.COMPLETE,
                    skip_if_finished=True,  # the same command may be running twice
                )
            ended += len(batch)
        if study.get_trials(states=[TrialState.COMPLETE]):
            best = {"best_value": study.best_value, "best_params": study.best_params}
            OmegaConf.save(OmegaConf.create(best), folder / "optimization_results.yaml")
            log.info("Best, with %.4f: %s", study.best_value, study.best_params)


def open_study(storage: str, name: str, space: Mapping[str, Any]) -> Any:
    """The study of a search space, on disk.

    Optuna does not let the choices of a study change. Where a search is given others, a study is
    begun that takes over those of the earlier trials that lie in the new space.
    """
    import optuna
    from optuna.trial import TrialState

    names = optuna.get_all_study_names(storage)
    earlier = [each for each in names if each.rpartition(" ")[0] == name]
    described = {
        key: optuna.distributions.distribution_to_json(space[key]) for key in sorted(space)
    }
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:6]
    title = f"{name} {digest}"
    study = optuna.create_study(
        study_name=title, storage=storage, direction="maximize", load_if_exists=True
    )
    if title in earlier:
        return study
    for other in earlier:
        for trial in optuna.load_study(study_name=other, storage=storage).trials:
            if trial.params.keys() != space.keys():
                continue
            finished = trial.state.is_finished()
            with suppress(ValueError):  # outside the space
                taken = optuna.trial.create_trial(
                    state=trial.state if finished else TrialState.FAIL,
                    value=trial.value,
                    params=trial.params,
                    distributions=dict(space),
                )
                if finished:
                    study.add_trial(taken)
                else:
                    study.enqueue_trial(taken.params)
    return study


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
