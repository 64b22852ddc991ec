#!/usr/bin/env bash
# Everything that needs a GPU, for a machine that has one for a quarter of an hour: bash benchmarks/gpu.sh DATA OUT [MINUTES]
# DATA: FER2013 in any form that load_faces reads. OUT: folder for the results. MINUTES: 12 if not given. DRY=1: small, on any machine.
# LANDMARKS: npz with names and landmarks of the faces, so that masks sit well where dlib is missing.
# The package has to be importable (installed, or on PYTHONPATH); nbdev is not needed. PYTHON names another python3.
set -u
data=$(realpath "${1:?which data? bash benchmarks/gpu.sh DATA OUT}") || exit 2
mkdir -p "${2:?which folder for the results? bash benchmarks/gpu.sh DATA OUT}"
out=$(realpath "$2")
seconds=$((60*${3:-12}))
python=${PYTHON:-python3}
dry=${DRY:+--dry}
landmarks=${LANDMARKS:+--landmarks $(realpath "$LANDMARKS")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$SECONDS

part() { # name, seconds at most, command
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout -s INT -k 10 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    echo "$name: $([ $status = 0 ] && echo done || echo "stopped with $status") after $((SECONDS-began)) s" | tee -a "$out/parts.txt"
    tail -n 3 "$out/$name.log"
}

: > "$out/parts.txt"
share=$((seconds/12))
part cells $share "$python" -m benchmarks.gpu cells --out "$out" $dry
part tests $((2*share)) "$python" -m pytest -q ${DRY:+tests/test_graphs.py tests/test_gpu.py}
part kmeans $share "$python" -m benchmarks.gpu kmeans --out "$out" $dry
part epochs $share "$python" -m benchmarks.gpu epochs --data "$data" --out "$out" $dry
left=$((seconds-(SECONDS-start)))
part grid "$left" "$python" -m benchmarks.gpu grid --data "$data" --out "$out" --seconds "$left" $landmarks $dry
