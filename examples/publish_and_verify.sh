#!/usr/bin/env bash
# Ada builds a tiny model and publishes it with its proofs. Bob and Carol, who know her by nothing but the name of the
# repository, audit it and sign what they found. Dan trusts those two: he verifies, and downloads. Then one byte changes.
#
#   publish_and_verify.sh PROJECT OWNER/NAME [BUILD]    in an empty folder; HF_ENDPOINT and HF_TOKEN say where to
#
# BUILD is a folder under builds/, without it the smallest. docs/publish.md tells it; tests/test_published.py runs it
# against a Hub of its own.
set -euo pipefail
project=$(realpath "$1") repository=$2 build=${3:-qwen3-0.6b}
tiny=(--tiny --size mini)

# Run a command that has to end with this status: 1 is a no, 3 that nobody is known who says so.
ends() {
  local status=0
  "${@:2}" || status=$?
  [[ $status -eq $1 ]] || { echo "status $status, expected $1: ${*:2}" >&2; exit 1; }
}

mkdir ada bob carol dan

echo "== Ada makes it"
cd ada
requant keys new ada
cp -r "$project/builds" "$project/lockfiles" "$project"/Dockerfile.* .
requant build "builds/$build" "${tiny[@]}" --out out/model
requant publish out/model "$repository" --recipe "builds/$build" "${tiny[@]}" --sign ada.key
requant publish out/model "$repository" --recipe "builds/$build" "${tiny[@]}" --sign ada.key --push

for name in bob carol; do
  echo "== $name looks"
  cd "../$name"
  requant keys new "$name"
  ends 3 requant verify "$repository"
  requant fetch "$repository" --out model
  requant verify model
  recipe=model/requant/builds/$build
  requant audit model --recipe "$recipe" --all "${tiny[@]}" --auditor "$name" --record --sign "$name.key"
  # They send her what they signed: a pull request in the repository, or a mail.
  mkdir -p "../ada/builds/$build/audits"
  cp "$recipe"/audits/* "../ada/builds/$build/audits/"
done

echo "== Ada publishes what they found: a few small files"
cd ../ada
requant publish out/model "$repository" --recipe "builds/$build" "${tiny[@]}" --sign ada.key --push

echo "== Dan knows Bob and Carol"
cd ../dan
for name in bob carol; do
  printf "[[builder]]\nname = \"%s\"\nkey = '''\n%s\n'''\n" "$name" "$(cat "../$name/$name.pub")"
done > builders.toml
requant verify "$repository" --builders builders.toml --require 2
ends 3 requant verify "$repository" --builders builders.toml --require 3
requant fetch "$repository" --out model --builders builders.toml --require 2

echo "== One byte changes, where he has it and where it is published"
printf '\x01' | dd of=model/model-00001-of-00003.safetensors bs=1 seek=100000 conv=notrunc status=none
ends 1 requant verify model --require 2 --builders builders.toml
python3 - model/model-00001-of-00003.safetensors "$repository" << 'END'
import sys
from huggingface_hub import upload_file
upload_file(path_or_fileobj=sys.argv[1], path_in_repo=sys.argv[1].rpartition("/")[2], repo_id=sys.argv[2])
END
ends 1 requant verify "$repository" --builders builders.toml --require 2
ends 1 requant fetch "$repository" --out never --builders builders.toml --require 2
[[ ! -e never ]]

echo "== The weights are gone: what stands in requant/ makes them again"
rm model/*.safetensors
requant rebuild "model/requant/builds/$build" "${tiny[@]}" --out again
requant verify again "model/requant/builds/$build/mini.manifest.json"
