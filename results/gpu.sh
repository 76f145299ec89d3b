#!/usr/bin/env bash
# Makes every row of results/ that needs a GPU again, in the order of what is missed most. Rows are kept as they come, and
# replace those of the same points on the same hardware alone. From the root of the repository: results/gpu.sh [OUT]
set -euo pipefail
out=${1:-results}

# what is predicted of the points that are measured below
uv run dcbench compare memory --meter predicted --dataset cifar100 --dataset imagenet1k-64 --out "$out"

# Figure 1: peaks by the allocator, and runtimes, on the shapes of CIFAR-100 and ImageNet-1K
uv run dcbench compare memory --meter cuda --out "$out"
uv run dcbench compare memory --meter cuda --dataset imagenet1k-64 --out "$out"
uv run dcbench compare time --device cuda --out "$out"
uv run dcbench compare time --device cuda --dataset imagenet1k-64 --steps 10 --out "$out"
uv run dcbench reproduce figure1 --run --device cuda --out "$out"
