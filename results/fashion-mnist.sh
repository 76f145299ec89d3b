#!/usr/bin/env bash
# Fashion-MNIST, preset quick: every method at IPC 1 and 10 with three seeds, under three label regimes and two networks.
# The committed rows, docs/results/fashion-mnist.md and `dcbench compare regimes` come from it.
#
#   OMP_NUM_THREADS=1 nice results/fashion-mnist.sh      goes on where it was; what is done is not done again
#
# What was run stands in results/rows. All of it takes about 20 hours of one core; what is worth most comes first, so
# that it can be stopped at any time. Teachers and one-hot labels judge the last sets only.
set -euo pipefail
cd "$(dirname "$0")/.."

coresets=(random herding k-center class-means rded)
table1=(dm dc dsa tesla tesla-exact mtt kip frepo)
others=(idc cafe ftd datm ld rat-bptt dd)

run() { # seed, evaluators, settings ... -- methods ...
  local seed=$1 options=() methods=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  for method in "$@"; do methods+=(--method "$method"); done
  dcbench run "${methods[@]}" --dataset fashion-mnist --ipc 1 --ipc 10 --preset quick --seed "$seed" --out results "${options[@]}"
}

both=(--evaluator convnet --evaluator resnet18)
for seed in 0 1 2; do
  run $seed "${both[@]}" -- "${coresets[@]}" "${table1[@]}"
  for labels in teacher hard; do
    run $seed "${both[@]}" --set evaluation.labels=$labels --set evaluation.every=0 -- "${coresets[@]}" "${table1[@]}"
  done
  [ $seed != 0 ] || run $seed "${both[@]}" -- "${others[@]}"
done
for labels in teacher hard; do run 0 "${both[@]}" --set evaluation.labels=$labels --set evaluation.every=0 -- "${others[@]}"; done
