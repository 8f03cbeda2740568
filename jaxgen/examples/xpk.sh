#!/bin/bash
# A run on two TPU slices on Kubernetes, by xpk
#
#   jaxgen examples xpk.sh; bash xpk.sh CLUSTER IMAGE my.yaml
#
# The image has jaxgen[tpu] installed. JAX finds the hosts of all slices by itself, so the same
# command runs on each; data:2 is the axis that crosses the network between the slices.
set -euo pipefail
cluster=${1:?usage: xpk.sh CLUSTER IMAGE CONFIG}
image=${2:?usage: xpk.sh CLUSTER IMAGE CONFIG}
config=${3:?usage: xpk.sh CLUSTER IMAGE CONFIG}
name=$(basename "$config" .yaml)

# What a slice has to hold, and how long a step takes, is said before anything is rented.
jaxgen plan "$config" --topology 2xv5e:4x4 mesh=data:2,fsdp:16

xpk workload create \
  --cluster "$cluster" --workload "$name" --docker-image "$image" \
  --tpu-type v5litepod-16 --num-slices 2 --max-restarts 20 \
  --command "jaxgen train $config --out /data/runs/$name mesh=data:2,fsdp:16"
