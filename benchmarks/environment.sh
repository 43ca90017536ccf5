#!/bin/sh
# An environment with the peers that shares the packages of another: environment.sh .venv .venv-bench
set -e
shared=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$1/bin/python" -m venv --clear "$2"
own=$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$shared')" > "$own/shared.pth"
"$2/bin/python" -m pip install -q --no-deps --ignore-installed -r "$(dirname "$0")/requirements.txt"
