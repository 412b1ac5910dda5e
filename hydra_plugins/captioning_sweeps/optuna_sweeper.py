"""A Hydra sweeper that searches with Optuna, stores every trial on disk, and can be resumed."""

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

from captioning.support.files import atomic_write_text, writing

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Searches for the settings with the highest score by TPE.

    Running the same command again continues its study until ``n_trials`` trials have ended. Trials
    that were interrupted are run first, with the same values. A failed trial is recorded as failed.
    If the search space was changed, earlier trials that lie in the new space still count.

    Args:
        n_trials: number of trials of the study, including those of earlier commands.
        n_jobs: number of jobs that are launched together.
        n_startup_trials: number of random trials at the start.
        seed: the seed of the search.
        storage: the URL of a database; None stands for ``optuna.db`` in the sweep's folder.
        params: ``{key: values}`` in Hydra's grammar: a choice ``a,b``, ``interval(low, high)``,
            ``int(interval(low, high))`` for whole numbers, or ``tag(log, ...)`` around either.
            Sweep overrides on the command line are added to them.
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
        """Run trials until ``n_trials`` have ended."""
        from hydra_plugins.captioning_sweeps._launching import require

        with require("optuna"):
            import optuna
            from optuna.trial import TrialState

        given = [f"{key}={value!s}" for key, value in self.params.items()]
        overrides = {
            each.get_key_element(): each
            for each in OverridesParser.create().parse_overrides([*given, *arguments])
        }
        space = {
            key: distribution_of(each)
            for key, each in overrides.items()
            if each.is_sweep_override()
        }
        fixed = [str(each.input_line) for key, each in overrides.items() if key not in space]
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = self.storage or f"sqlite:///{folder / 'optuna.db'}"
        study = open_study(storage, folder.name, space)
        n_earlier = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + n_earlier,  # a continued study must not repeat its first random draws
            n_startup_trials=self.n_startup_trials,
            constant_liar=self.n_jobs > 1,
        )
        # A trial with its old values finds its old folder. One that lacks values was never started.
        running = study.get_trials(states=[TrialState.RUNNING])
        interrupted = [trial for trial in running if trial.params.keys() == space.keys()]
        ended = sum(trial.state.is_finished() for trial in study.trials)
        if n_earlier:
            log.info("%d of %d trials had ended before this command", ended, self.n_trials)
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
                    skip_if_finished=True,  # another process may have run the same trial
                )
            ended += len(batch)
        if study.get_trials(states=[TrialState.COMPLETE]):
            best = {"best_value": study.best_value, "best_params": study.best_params}
            text = OmegaConf.to_yaml(OmegaConf.create(best))
            atomic_write_text(folder / "optimization_results.yaml", text)
            log.info("Best score %.4f with %s", study.best_value, study.best_params)


def open_study(storage: str, name: str, space: Mapping[str, Any]) -> Any:
    """Open the study of a search space, or create it.

    Optuna does not allow the choices of a study to change. A new search space therefore gets a new
    study, into which earlier trials are copied if they lie in the new space.
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
            with suppress(ValueError):  # the trial lies outside the new space
                copied = optuna.trial.create_trial(
                    state=trial.state if finished else TrialState.FAIL,
                    value=trial.value,
                    params=trial.params,
                    distributions=dict(space),
                )
                if finished:
                    study.add_trial(copied)
                else:
                    study.enqueue_trial(copied.params)
    return study


def distribution_of(override: Override) -> Any:
    """The Optuna distribution for a sweep override."""
    from optuna import distributions

    value = override.value()
    if isinstance(value, IntervalSweep):
        ends: tuple[Any, Any] = value.start, value.end
        whole = all(isinstance(end, int) for end in ends)
        kind: Any = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(*ends, log="log" in value.tags)
    choices = override.sweep_iterator(transformer=Transformer.encode)
    return distributions.CategoricalDistribution([str(choice) for choice in choices])
