#!/bin/sh
# Make the environment: find a Python of 3.11 or newer, say how large the download is, install. Called by the Makefile.
set -eu
venv=$1
extras=$2

python=""
if [ -n "${PYTHON:-}" ]; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "PYTHON=$PYTHON is no Python of 3.11 or newer ($("$PYTHON" --version 2>&1 || echo "does not run"))." >&2
        exit 1
    fi
    python=$PYTHON
fi
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    [ -z "$python" ] || break
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "vlnotes needs Python 3.11 or newer and found none (python3 is $(python3 --version 2>&1 || echo missing))." >&2
    echo "Install one, or name it: make lab PYTHON=/path/to/python3.12" >&2
    exit 1
fi

if [ ! -e "$venv/.ready" ]; then
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) size="about 2.7 GB to download, 6.5 GB on disk (PyTorch for Linux brings its CUDA libraries)" ;;
        *) size="an estimated 0.5 GB to download, 2 GB on disk (measured on Linux x86-64 only)" ;;
    esac
    echo "Making the environment in $venv with $("$python" --version): $size."
    echo "This happens once. Nothing outside $venv is touched."
    if [ ! -x "$venv/bin/python" ] && ! "$python" -m venv "$venv"; then
        [ -e "$venv/pyvenv.cfg" ] && rm -rf "$venv"
        echo "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
else
    echo "pyproject.toml has changed: bringing $venv up to date."
fi

rm -f "$venv/.failed"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24" || touch "$venv/.failed"
# pip talks a lot; show what takes time, keep its errors, and keep its exit status through the pipe.
[ -e "$venv/.failed" ] || {
    "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[$extras]" || touch "$venv/.failed"
} | sed -n -E \
    -e 's/^ *(Downloading|Using cached) ([A-Za-z0-9_.]+)-([^-]+)-.* \(([0-9.]+ GB|[0-9]{2,}\.[0-9] MB|[0-9]{3} MB)\).*/  \2 \3, \4/p' \
    -e 's/^Installing collected packages.*/  unpacking .../p' \
    -e 's/^(Successfully) installed.*/  done/p'
if [ -e "$venv/.failed" ]; then
    rm -f "$venv/.failed"
    echo "The installation failed; pip's message stands above. Nothing is lost: run the same command again." >&2
    exit 1
fi

# No pop-up about news in a class room: the course does not call home.
"$venv/bin/jupyter" labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1 ||
    echo "(JupyterLab's question about news could not be switched off; answer it as you like)"
