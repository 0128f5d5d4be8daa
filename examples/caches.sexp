; Keeps downloaded packages in a cache that all builds on the store share: change the list of packages and only
; what is new is downloaded.
;
;   obuild run examples/caches.sexp
((from debootstrap:bookworm)
 (env DEBIAN_FRONTEND noninteractive)
 ; Debian's images may be set up to throw packages away after installing them.
 (run (shell "rm -f /etc/apt/apt.conf.d/docker-clean"))
 (run
  (cache (apt-archives (target /var/cache/apt/archives)) (apt-lists (target /var/lib/apt/lists)))
  (network host)
  (shell "apt-get update && apt-get install -y --no-install-recommends file make"))
 ; What is in a cache is no part of the result.
 (run (shell "make --version && ! ls /var/cache/apt/archives/make_*.deb")))
