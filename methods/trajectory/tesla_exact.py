"""tesla-exact: the unrolled gradient in the memory of one step's graph."""

from .matching import ExactSettings, TrajectoryMatching


class TESLAExact(TrajectoryMatching):
    """Trajectory matching with MTT's exact gradient in the graph memory of a single step (the adjoint recursion).

    What TESLA's abstract promises; ``docs/gradients.md`` has the derivation.
    """

    mode = "exact"
    compiles = True
    Settings = ExactSettings
