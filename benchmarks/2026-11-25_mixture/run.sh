#!/bin/sh
# From a folder with all-MiniLM-L6-v2 and data/glue; what is finished is not run again, the rows are copied beside this file.
set -e
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1
for task in mrpc cola rte; do
  [ -f experts/$task/result.json ] || python -m rmlora train "$here/experts/$task.yaml"
  cp experts/$task/metrics.jsonl "$here/experts/$task.jsonl"
done
python -m rmlora compare "$here/study.yaml" --workers 1 --threads 1
cp studies/mixture/rows.jsonl studies/mixture/chosen.json studies/mixture/environment.json "$here"
python "$here/table.py"
