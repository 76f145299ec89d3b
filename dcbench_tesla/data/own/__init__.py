"""The user's own data: what is decided for them, how arrays of other types are converted, data sets of PyTorch."""
