#!/bin/sh
# From a folder with all-MiniLM-L6-v2 and data/glue; what is finished is not run again, the rows are copied beside this file.
set -e
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1
for way in search gradient; do
  python -m rmlora compare "$here/$way.yaml" --workers 1 --threads 1
  cp studies/derivative-free-$way/rows.jsonl "$here/rows-$way.jsonl"
done
cp studies/derivative-free-search/environment.json "$here"
python "$here/table.py"
