#!/usr/bin/env bash
# Makes every row of results/ that needs a GPU, in the order of what is missed most. Rows are kept as they come, replace
# those of the same points on the same hardware alone, and what is done is not done again: it can be stopped at any time.
# From the root of the repository:
#
#   results/gpu.sh [OUT [CIFAR10_JPEG.npz]]      DCBENCH=dcbench where uv is not there
set -euo pipefail
out=${1:-results} jpeg=${2:-}
read -ra dcbench <<<"${DCBENCH:-uv run dcbench}"

# what is predicted of the points that are measured below
"${dcbench[@]}" compare memory --meter predicted --dataset cifar100 --dataset imagenet1k-64 --out "$out"

# Figure 1: peaks by the allocator, and runtimes, on the shapes of CIFAR-100 and ImageNet-1K
"${dcbench[@]}" compare memory --meter cuda --out "$out"
"${dcbench[@]}" compare memory --meter cuda --dataset imagenet1k-64 --out "$out"
"${dcbench[@]}" compare time --device cuda --out "$out"
"${dcbench[@]}" compare time --device cuda --dataset imagenet1k-64 --steps 10 --out "$out"
"${dcbench[@]}" reproduce figure1 --run --device cuda --out "$out"

# Fashion-MNIST by the papers' protocols, under networks of published size
for method in random herding k-center dm dsa dc; do
  for ipc in 1 10; do
    "${dcbench[@]}" run --method $method --dataset fashion-mnist --ipc $ipc --device cuda --no-baseline --out "$out" \
      --evaluator convnet --evaluator resnet18 --evaluator vit
  done
done

# DATM on all images of CIFAR-10, re-encoded as JPEG: never called CIFAR-10
if [ -n "$jpeg" ]; then
  "${dcbench[@]}" run --method datm --method tesla-exact --dataset "npz:$jpeg" --ipc 10 --device cuda --out "$out"
fi
