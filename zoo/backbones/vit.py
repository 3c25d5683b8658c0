"""A vision transformer of timm's for images of 32 pixels, the small counterpart of CLIP's ViT-B/32."""

import functools

from torch import nn


def vit_micro() -> nn.Module:
    """Patches of 4 pixels, a class token, four blocks of width 96 with four heads, an MLP of twice the width.

    The patches are embedded by six 3×3 convolutions (Xiao et al., *Early Convolutions Help Transformers See Better*,
    NeurIPS 2021): cut out as they stand, they would need many more images to learn from than `shapes` has.
    """
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    stem = ConvStem(depth=6, channels=(24, 24, 48, 48, 64, 64), kernel_size=3, stride=(1, 1, 2, 1, 2, 1))
    embed = functools.partial(HybridEmbed, backbone=stem)
    return VisionTransformer(
        img_size=32, patch_size=1, embed_dim=96, depth=4, num_heads=4, mlp_ratio=2, num_classes=10, embed_layer=embed
    )
