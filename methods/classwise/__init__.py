"""Class-wise matching of synthetic and real images: gradients (`dc`, `dsa`, `idc`) or mean features (`dm`, `cafe`)."""
