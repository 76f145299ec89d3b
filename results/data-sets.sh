#!/usr/bin/env bash
# MNIST and CIFAR-10-JPEG, preset quick: the methods of Table 1 at IPC 1 and 10, one seed. The committed rows come from it.
#
#   OMP_NUM_THREADS=1 nice results/data-sets.sh [DATASET ...]      goes on where it was; what is done is not done again
#
# MNIST lies in the data folder (`dcbench info mnist`). CIFAR-10-JPEG are the images of CIFAR-10 encoded again as JPEG at
# quality 75, in cifar10-jpeg.npz beside this folder; a result on them is none on CIFAR-10. What was run stands in
# results/rows. All of it takes about 12 hours of one core; one image a class comes first.
set -euo pipefail
cd "$(dirname "$0")/.."

methods=(random herding k-center class-means dm tesla dc dsa tesla-exact mtt kip frepo)
sets=("${@:-mnist}")
[ $# -gt 0 ] || sets+=(npz:cifar10-jpeg.npz)

for ipc in 1 10; do
  for dataset in "${sets[@]}"; do
    for method in "${methods[@]}"; do
      whitened=()
      case $dataset:$method in # as published for CIFAR-10
        npz:*:mtt | npz:*:tesla* | npz:*:kip | npz:*:frepo) whitened=(--set data.zca=true) ;;
      esac
      dcbench run --method "$method" --dataset "$dataset" --ipc "$ipc" --preset quick --out results "${whitened[@]}"
    done
  done
done
dcbench run --method whole --dataset mnist --preset quick --out results
