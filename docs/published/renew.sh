#!/usr/bin/env bash
# Train the published MLP and LeNet in full with today's source, and keep the small files of both here.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=build/tutorial
mkdir -p "$folder"
runs=results/runs
snakemake --cores all --configfile config/tutorial.yaml --directory "$folder" \
  "$runs/mlp/default/score.json" "$runs/lenet/default/score.json"
for model in mlp lenet; do
  for file in history.csv timings.csv training.json provenance.json score.json; do
    cp "$folder/$runs/$model/default/$file" "docs/published/$model/default/"
  done
done
msgd compare-published --output docs/published docs/published/*/default
python docs/refresh.py
