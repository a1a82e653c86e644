#!/bin/sh
# The comparison of a model card: each prompt, plain and in styles, with several models, from the same seeds.
#   examples/compare.sh [MODELS [STYLES [PROMPTS [FOLDER]]]]
#   examples/compare.sh zh-v0,zh-v1,zh-v2 plain,ink,oil,anime,photo
# Models and styles are those of `huafang models ls` and `huafang styles ls`, plain is no style. HUAFANG_URL and
# HUAFANG_KEY are the address of the farm and an API key. The page is FOLDER/grid.html, the sheet FOLDER/grid.png.
set -eu

models=${1:-mini-zh}
styles=${2:-plain,blackboard}
prompts=${3:-$(dirname "$0")/prompts.txt}
folder=${4:-comparison}

"${HUAFANG:-huafang}" grid --models "$models" --styles "$styles" --prompts "$prompts" --seed 42 --out "$folder"
