"""FTD: trajectory matching with flat experts and averaged images."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Problem
from dcbench_tesla.profilers import origin

from .successors import SuccessorMatching, SuccessorSettings


@dataclass(frozen=True, kw_only=True)
class FTDSettings(SuccessorSettings):
    """:class:`SuccessorSettings`, and the average of the images.

    Args:
        ema: d, the share of the average that an update keeps; 0: the set has the images themselves.
    """

    ema: float = 0.9995

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema must lie in [0, 1), not {self.ema:g}.")


class FTD(SuccessorMatching):
    """Trajectory matching with flat experts (GSAM) and averaged images: less error accumulates along a trajectory.

    Du, Jiang, Tan, Zhou, Li, "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation", CVPR 2023.
    MTT's iteration, in one step's graph; after each update ``ema <- d ema + (1 - d) x``, from the start images on. The
    distilled set has the average, with the learned rate as it is. The experts are flat where ``experts.gsam_rho`` says
    so, as all presets do.
    """

    Settings = FTDSettings

    def setup(self, problem: Problem) -> None:
        """Start as trajectory matching does, with the average at the start images."""
        super().setup(problem)
        with origin("optimiser"):
            self._average = self._values["images"].clone()

    def _apply(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        super()._apply(loss, gradients)
        self._average.mul_(self.settings.ema).add_(self._values["images"], alpha=1 - self.settings.ema)

    def _distilled_images(self) -> Tensor:
        return self._average

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of trajectory matching, and the averaged images."""
        return {**super().state_dict(), "average": self._average}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._average.copy_(state["average"])
