"""Class-wise matching of synthetic and real images: `dc` and `dsa` match gradients, `dm` matches mean features."""
