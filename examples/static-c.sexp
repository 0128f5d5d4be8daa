; Compiles a C program in one build and takes only the result into another, which has no compiler, no shell, nothing.
;
;   obuild run examples/static-c.sexp
((build dev
  ((from debootstrap:bookworm)
   (env DEBIAN_FRONTEND noninteractive)
   ; Steps have no network unless they ask for the host's.
   (run
    (network host)
    (shell "apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev"))
   (workdir /src)
   (run
    (shell "cat > hello.c <<'PROGRAM'\n\
            #include <stdio.h>\n\
            int main(void) { puts(\"hello from a static program\"); return 0; }\n\
            PROGRAM\n\
            gcc -O2 -static -o hello hello.c && ./hello"))))
 (from scratch)
 (copy (from (build dev)) (src /src/hello) (dst /bin/hello))
 ; Without a shell in the tree, the command itself is the program.
 (shell)
 (run (shell /bin/hello)))
