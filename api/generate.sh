#!/usr/bin/env bash
# Regenerates the committed Go code of every .proto in this folder.
set -euo pipefail
cd "$(dirname "$0")"
go tool -modfile=../tools/go.mod buf lint
go tool -modfile=../tools/go.mod buf generate
