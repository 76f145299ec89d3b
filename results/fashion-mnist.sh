#!/usr/bin/env bash
# Fashion-MNIST, preset quick: every method at IPC 1 and 10 with three seeds, under three label regimes and two networks.
# The committed rows, docs/results/fashion-mnist.md and `dcbench compare regimes` come from it.
#
#   OMP_NUM_THREADS=1 nice results/fashion-mnist.sh [SEED ...]      goes on where it was; what is done is not done again
#
# What was run stands in results/rows. All of it takes about 20 hours of one core; what is worth most comes first, so
# that it can be stopped at any time. Teachers judge the last sets only.
set -euo pipefail
cd "$(dirname "$0")/.."

first=(random herding k-center class-means rded dm dc dsa tesla)
second=(tesla-exact mtt kip frepo)
others=(idc cafe ftd datm ld rat-bptt dd) # with seed 0 only
seeds=("${@:-0}")
[ $# -gt 0 ] || seeds+=(1 2)

run() { # seed, settings ... -- methods ...
  local seed=$1 options=() methods=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  for method in "$@"; do methods+=(--method "$method"); done
  dcbench run "${methods[@]}" --dataset fashion-mnist --ipc 1 --ipc 10 --preset quick --seed "$seed" --out results \
    --evaluator convnet --evaluator resnet18 "${options[@]}"
}

regimes() { # seed, methods ...
  local seed=$1
  shift
  run "$seed" -- "$@"
  run "$seed" --set evaluation.labels=hard -- "$@" # where labels are classes, the rows just made are taken
  run "$seed" --set evaluation.labels=teacher --set evaluation.every=0 -- "$@"
}

for seed in "${seeds[@]}"; do regimes "$seed" "${first[@]}"; done
for seed in "${seeds[@]}"; do regimes "$seed" "${second[@]}"; done
for seed in "${seeds[@]}"; do [ "$seed" != 0 ] || regimes 0 "${others[@]}"; done
