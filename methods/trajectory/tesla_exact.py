"""tesla-exact: the gradient of the unrolled steps, with the memory of one step's graph."""

from .matching import ExactSettings, TrajectoryMatching


class TESLAExact(TrajectoryMatching):
    """Trajectory matching with MTT's exact gradient in the graph memory of a single step (the adjoint recursion).

    This is what TESLA's abstract promises; ``docs/gradients.md`` has the derivation.
    """

    mode = "exact"
    compiles = True
    Settings = ExactSettings
