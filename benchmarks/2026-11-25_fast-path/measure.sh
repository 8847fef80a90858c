#!/bin/sh
# Every row of this folder, in about twenty minutes on two quiet cores: sh measure.sh [rmlora]
set -eu
cd "$(dirname "$0")"
rmlora=${1:-rmlora}
for dtype in float32 bfloat16; do
    for size in "8 4" "64 8"; do
        set -- $size
        "$rmlora" bench --r "$1" --directions "$2" --weight 1e-3 --dtype "$dtype" --rounds 10 --warmup 2 --profile \
            --contenders floor,peft,rmlora --output "rows-$dtype-r$1.jsonl" >"table-$dtype-r$1.txt"
    done
done
