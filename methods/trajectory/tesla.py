"""TESLA: trajectory matching in constant memory, with the published gradient."""

from .matching import TrajectoryMatching, TwoPassSettings


class TESLA(TrajectoryMatching):
    """Trajectory matching in constant memory as published: the gradient drops the curvature of later steps.

    Cui, Wang, Si, Hsieh, "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023. The
    published gradient treats the student's weights at every step as constant in the images. It is exact for T = 1 only,
    see ``docs/gradients.md``. Its factor 2 is kept here; the released code loses it in the gradient of the images, so a
    published image learning rate of 1000 is 500 here.
    """

    mode = "frozen"
    compiles = True
    Settings = TwoPassSettings
