#!/usr/bin/env bash
# Collects what `make gpu` needs on a machine with a GPU and no network: wheels in .whl/ and data in .data/, which git
# ignores. Run it in the project's root, then send both folders along with the project: about 45 MB in all.
#
#   tests/gpu/carry.sh DATA       # the folder with wiki, glue and blimp
#
# There, `bash tests/gpu/lent.sh` does the rest. The wheels are for Python 3.12 on x86-64, and are those that an image with
# PyTorch, transformers, peft, pandas, scipy and typer lacks.
set -euo pipefail
data=${1:?the folder with wiki, glue and blimp}
rm -rf .whl .data
mkdir -p .whl .data/wiki .data/glue .data/blimp
cp "$data"/wiki/small.txt.xz "$data"/wiki/valid.txt.xz .data/wiki/
cp -r "$data"/glue/sst2 .data/glue/
cp "$data"/blimp/BLiMP.zip .data/blimp/

compiled="pydantic-core"
plain="annotated-types chardet dataproperty datasets defusedxml dill evaluate lm-eval mbstrdecoder more-itertools
  multiprocess nltk pathvalidate peft pydantic pytablewriter tabledata tcolorpy typepy typing-inspection"
sources="rouge-score sqlitedict word2number"
pinned() { for name in "$@"; do grep -i "^$name==" constraints.txt || { echo "$name: no version in constraints.txt" >&2; exit 1; }; done; }
python=${PYTHON:-python3}
platforms=()
for one in manylinux_2_28 manylinux_2_17 manylinux2014; do platforms+=(--platform "${one}_x86_64"); done
$python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
  -d .whl $(pinned $compiled $plain)
$python -m pip download -q --no-deps -d .whl httpx==0.28.1  # which the older huggingface-hub there imports
$python -m pip wheel -q --no-deps -w .whl $(pinned $sources)
du -sh .whl .data
