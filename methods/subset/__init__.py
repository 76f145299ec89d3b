"""Real images selected (`random`, `whole`, `herding`, `k-center`) or averaged (`class-means`): nothing is learned."""
