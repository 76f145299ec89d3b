"""MTT: trajectory matching that keeps the graph of all T steps."""

from .matching import TrajectoryMatching


class MTT(TrajectoryMatching):
    """Matching training trajectories, unrolled: the exact gradient, with memory linear in the matching steps.

    Cazenavette, Wang, Torralba, Efros, Zhu, "Dataset Distillation by Matching Training Trajectories", CVPR 2022.
    """

    mode = "unrolled"
