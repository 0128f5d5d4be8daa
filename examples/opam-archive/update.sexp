; What first.sexp began goes on: upon the image of before, `opam admin cache` fetches what is new, and that alone becomes
; layers of the next image. A directory that holds no archive twice and a limit on layers are what `obuild archive image` is for.
;
;   examples/opam-archive/package.sh /tmp/opam-archive second
;   obuild run /tmp/opam-archive/update.sexp /tmp/opam-archive -o type=oci,dest=/tmp/opam-archive/next
;   cd /tmp/opam-archive
;   ls image/blobs/sha256 > before
;   ls next/blobs/sha256 | grep -vxFf before > new
;   test $(cd next/blobs/sha256 && cat $(cat ../../../new) | wc -c) -lt 200000
;   rm -r image && mv next image
((from oci:image)
 (env HOME /root)
 (env OPAMROOTISOK 1)
 (copy (src repository) (dst /srv/repository))
 (copy (src sources) (dst /srv/sources))
 (workdir /srv/repository)
 (run (network host) (shell "opam admin cache ../cache && opam admin index"))
 (run (shell "test $(find ../cache -type f | wc -l) -ge 2")))
