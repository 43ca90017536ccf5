#!/bin/sh
# Build the wheel, install it into a second environment, and run the tests against it instead of the checkout.
# The second environment borrows the first one's dependencies: paths named in a .pth file are searched, but the .pth
# files inside them (the editable install's hook) are not run.
set -eu
first=$1
second=$2
rm -rf build dist "$second" *.egg-info
"$first/bin/pip" wheel -q --no-deps --no-build-isolation --wheel-dir dist .
"$first/bin/python" -m venv --without-pip "$second"
rm -rf build *.egg-info
site=$("$second/bin/python" -c 'import site; print(site.getsitepackages()[0])')
"$first/bin/python" -c 'import site; print(site.getsitepackages()[0])' > "$site/borrowed.pth"
"$first/bin/pip" --python "$second/bin/python" install -q --no-deps --no-index dist/*.whl
cache=$(pwd)/$second/cache
cd tests
../"$second"/bin/python -P -c '
import ckpt_tools, ckpt_plugins, ckpt_trainers, sys
for module in (ckpt_tools, ckpt_plugins, ckpt_trainers):
    assert module.__file__.startswith(sys.prefix), f"{module.__file__} is not the installed wheel"
'
run() { ../"$second"/bin/python -P -m pytest -q -c ../pyproject.toml --rootdir .. -o cache_dir="$cache" "$@" .; }
run -n 2 --dist loadfile || run --last-failed
