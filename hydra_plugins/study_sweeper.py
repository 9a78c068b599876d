"""Hydra looks for sweepers in a package of this name and nowhere else. It has no __init__.py, as
other packages put theirs beside it."""

from collections.abc import Sequence

from hydra import TaskFunction
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Runs the study in section `study` of the config: its rounds, each by Hydra's launcher."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: Sequence[str]) -> None:
        from studies.drive import drive  # not at each start of Hydra

        drive(self.config, arguments, self.launcher)
