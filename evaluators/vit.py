"""The small vision transformer of the papers' cross-architecture table."""

from dataclasses import dataclass
from functools import partial

from torch import nn

from dcbench_tesla.errors import UsageError

from .cross_architecture import CrossArchitecture, CrossSettings, default_initialisation

_HEADS = 8


@dataclass(frozen=True, kw_only=True)
class ViTSettings(CrossSettings):
    """:class:`CrossSettings`, and the width of the network.

    Args:
        epochs: passes over the distilled set.
        lr: learning rate.
        width: width of the tokens and of the MLP (published: 512), a multiple of 8.
    """

    epochs: int = 300
    lr: float = 5e-4
    width: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < _HEADS or self.width % _HEADS:
            raise UsageError(f"vit.width must be a multiple of its {_HEADS} heads, not {self.width}.")


class ViT(CrossArchitecture):
    """ViT (timm): patches of 4, 6 blocks of 8 heads, class token, dropout 0.1, as in the papers' Table 3.

    9,523,722 parameters for ten classes at 3 x 32 x 32 and ``width`` 512. Dosovitskiy et al., ICLR 2021.
    """

    Settings = ViTSettings
    settings: ViTSettings

    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised ViT for images of ``side`` pixels."""
        from timm.models.vision_transformer import VisionTransformer

        network = VisionTransformer(
            img_size=side,
            patch_size=4,
            in_chans=channels,
            num_classes=classes,
            global_pool="token",
            embed_dim=self.settings.width,
            depth=6,
            num_heads=_HEADS,
            mlp_ratio=1.0,
            qkv_bias=False,
            class_token=True,
            pos_drop_rate=0.1,
            proj_drop_rate=0.1,
            attn_drop_rate=0.0,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
        )
        nn.init.normal_(network.cls_token)
        nn.init.normal_(network.pos_embed)
        return default_initialisation(network)
