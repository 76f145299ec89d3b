"""Random selection: the baseline that every condensation has to beat."""

from dcbench_tesla.interface import Condenser, DistilledSet, Problem

from .selection import real_images


class RandomSelection(Condenser):
    """IPC real images of every class, drawn at random: the baseline that every condensation has to beat."""

    uses_network = False

    def setup(self, problem: Problem) -> None:
        """Draw the images."""
        self._chosen = real_images(problem, problem.draw_real("random selection"))

    def distilled(self) -> DistilledSet:
        """Return the chosen images."""
        return self._chosen
