; The smallest useful build: obuild run examples/hello/spec.sexp
((from debootstrap:bookworm)
 (env GREETING "Hello from a sandbox")
 (run (shell "echo $GREETING > /greeting && cat /greeting /etc/debian_version")))
