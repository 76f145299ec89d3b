"""TESLA: trajectory matching in constant memory, as its authors run it."""

from .matching import TrajectoryMatching, TwoPassSettings


class TESLA(TrajectoryMatching):
    """Trajectory matching in constant memory as published: the gradient drops the curvature of later steps.

    Cui, Wang, Si, Hsieh, "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023. The
    published gradient treats every student as a constant in the images; it is exact for T = 1 only, see
    ``docs/gradients.md``. Its factor 2 is kept here; the released code loses it on the images, so a published
    image learning rate of 1000 is 500 here.
    """

    mode = "frozen"
    compiles = True
    Settings = TwoPassSettings
