#!/bin/sh
# Make an arm64 Python with the runtime's three dependencies in the folder $1, for tests/test_chips.py.
# Python comes from Debian's mirror through apt (nothing is installed), the wheels from PyPI; it runs
# under qemu-aarch64. onnxruntime 1.27 is the newest that runs under bookworm's qemu 7.2.
set -eu
folder=$1
pip=$2
packages="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1
zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libcrypt1"

rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/debs" "$folder/root"
folder=$(cd "$folder" && pwd)
: > "$folder/apt/status"
cat > "$folder/apt/apt.conf" <<EOF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State "$folder/apt";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
EOF
export APT_CONFIG="$folder/apt/apt.conf"
apt-get -qq update
cd "$folder/debs"
apt-get -qq download $packages
for deb in *.deb; do dpkg -x "$deb" "$folder/root"; done
cd "$folder"
rm -rf apt debs
"$pip" -m pip install --quiet --disable-pip-version-check --target site --python-version 311 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --only-binary=:all: onnxruntime==1.27.0 numpy tokenizers
