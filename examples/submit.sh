#!/bin/sh
# Render a prompt with curl and save the picture: examples/submit.sh [PROMPT [FILE]]
# HUAFANG_URL and HUAFANG_KEY are the address of the farm and an API key. The prompt must not contain " or \.
set -eu

prompt=${1:-红色的圆形}
file=${2:-picture.png}

# With `Prefer: wait` the farm answers when the job has ended, after at most 60 seconds.
job=$(curl -sS --fail-with-body "$HUAFANG_URL/v1/jobs" \
  -H "Authorization: Bearer $HUAFANG_KEY" \
  -H 'Content-Type: application/json' \
  -H 'Prefer: wait=60' \
  -d "{\"prompt\": \"$prompt\"}") || { echo "$job" >&2; exit 1; }

image=$(echo "$job" | sed -n 's/.*"images":\[{"id":"\([^"]*\)".*/\1/p')

# The farm redirects to a presigned link of the image store, which expires after some minutes.
curl -sS --fail -L "$HUAFANG_URL/v1/images/$image/content" -H "Authorization: Bearer $HUAFANG_KEY" -o "$file"
echo "$file"
