#!/bin/sh
# Adds a package to the repository of this example: package.sh DIRECTORY NAME. Its archive goes to DIRECTORY/sources,
# which stands for the rest of the world.
set -e
mkdir -p "$1"
cd "$1"
mkdir -p "sources/$2-1" "repository/packages/$2/$2.1"
echo "let () = print_endline \"$2\"" > "sources/$2-1/$2.ml"
tar -C sources --sort=name --mtime=@0 --owner=0 --group=0 -cf - "$2-1" | gzip -n > "sources/$2.tgz"
rm -r "sources/$2-1"
cat > "repository/packages/$2/$2.1/opam" <<END
opam-version: "2.0"
maintainer: "a@example.org"
synopsis: "$2"
url {
  src: "file:///srv/sources/$2.tgz"
  checksum: "sha256=$(sha256sum "sources/$2.tgz" | cut -d ' ' -f 1)"
}
END
echo 'opam-version: "2.0"' > repository/repo
