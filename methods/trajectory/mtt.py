"""MTT: trajectory matching with the graph of all T steps kept."""

from .matching import TrajectoryMatching


class MTT(TrajectoryMatching):
    """Matching training trajectories, unrolled: exact gradient, memory linear in the matching steps.

    Cazenavette, Wang, Torralba, Efros, Zhu, "Dataset Distillation by Matching Training Trajectories", CVPR 2022.
    """

    mode = "unrolled"
