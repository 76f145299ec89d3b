"""Figure 1b: memory and runtime at 50 matching steps, beside the ratios that the paper states."""
