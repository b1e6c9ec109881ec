#!/bin/sh
# Names what this machine lacks for the build, with the one command that installs it. Changes nothing.
python=${1:-python3}
missing=""
packages=""

lack() { # what, Debian package
    missing="$missing
  - $1"
    packages="$packages $2"
}

if ! command -v "$python" >/dev/null 2>&1; then
    lack "Python 3.11 or newer ($python is not there)" python3
else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        lack "Python 3.11 or newer ($("$python" -V 2>&1) is too old; give another with make PYTHON=...)" python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || lack "the venv module of $python" python3-venv
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -f "$header" ] || lack "Python's headers ($header)" python3-dev
fi
compiler=${CXX:-c++} # may hold flags or a launcher (ccache g++), so it is read as words below
folder=$(mktemp -d)
if ! printf '#include <bit>\nint main() { return std::popcount(0u); }\n' >"$folder/probe.cpp" ||
    ! $compiler -std=c++20 "$folder/probe.cpp" -o "$folder/probe" >/dev/null 2>&1; then
    lack "a C++20 compiler ($compiler)" g++
fi
rm -rf "$folder"
[ -z "$missing" ] && exit 0

echo "torchane cannot be built here. This machine lacks:$missing" >&2
case $(uname -s) in
Darwin) echo "Install it with:  xcode-select --install   (and Python from python.org or Homebrew)" >&2 ;;
*) echo "Install it with:  apt-get install$packages   (as root; other systems name these packages alike)" >&2 ;;
esac
exit 1
