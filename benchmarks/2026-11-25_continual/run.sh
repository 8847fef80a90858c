#!/bin/sh
# From a folder with all-MiniLM-L6-v2 and data/banking77; what is finished is not run again, the rows are copied beside this file.
set -e
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1
python -m rmlora compare "$here/study.yaml" --workers 1 --threads 1
python "$here/collect.py" studies/continual
