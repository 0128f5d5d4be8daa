// SPDX-License-Identifier: Apache-2.0
//! Attempts to get out of a sandbox, each made for real from inside by root with all that a step has, on every backend that has namespaces.

#![expect(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod support;

use obuild_fixtures::{Privilege, may, wait_for};
use obuild_sandboxes::{Command, Exit, Mount, MountSource, Network, Rootfs, Secret};
use std::os::unix::fs::symlink;
use support::{Tree, listing, processes, shell, unchanged};

// The `user` sandbox keeps a step from other users' files and processes, and no more: `conformance/users.rs` tries that.
on_namespaces!(
    kernel_settings_cannot_be_written,
    the_hosts_root_is_not_reached_through_processes,
    no_descriptor_is_inherited,
    nothing_can_be_mounted,
    masks_stay,
    disks_cannot_be_opened,
    processes_outside_are_out_of_reach,
    init_is_out_of_reach,
    abstract_sockets_are_out_of_reach,
    virtual_machine_sockets_are_refused,
    nobody_stays_alive,
    chroot_does_not_get_out,
    namespaces_cannot_be_made,
    cgroups_cannot_be_written,
    dangerous_calls_are_refused,
    foreign_conventions_are_no_way_round,
    terminals_cannot_be_typed_into,
    files_of_the_host_cannot_be_opened_by_handle,
    links_in_the_tree_do_not_lead_out,
    links_at_the_kernels_places,
    a_missing_place_behind_a_link,
    shared_inodes_keep_their_modes,
    the_hosts_memory_objects_are_not_shared,
);

/// Runs a line of attempts; it prints `OUT` when one got through.
fn fails(tree: &Tree, line: &str) {
    fails_as(tree, &shell(line));
}

fn fails_as(tree: &Tree, command: &Command) {
    for rootfs in [tree.directory(), tree.overlay()] {
        let (exit, output) = tree.run(command, &rootfs).expect("the command runs");
        assert!(!output.contains("OUT"), "{command:?}: {exit:?} {output}");
        assert!(
            output.contains("tried"),
            "the attempt was not made: {exit:?} {output}"
        );
    }
}

fn kernel_settings_cannot_be_written(tree: &Tree) {
    let paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/panic",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ];
    let before = paths.map(|path| fs_err::read(path).ok());
    for path in paths {
        let value = String::from_utf8_lossy(&fs_err::read(path).unwrap_or_default())
            .trim()
            .to_owned();
        fails(
            tree,
            &format!(
                "echo '{value}' > {path} && echo OUT; chmod 666 {path} && echo OUT; echo tried"
            ),
        );
    }
    fails(tree, "echo h > /proc/sysrq-trigger && echo OUT; echo tried");
    fails(
        tree,
        "sysctl -w kernel.panic=0 && echo OUT; sysctl -w net.ipv4.ip_forward=1 && echo OUT; echo tried",
    );
    assert_eq!(paths.map(|path| fs_err::read(path).ok()), before);
}

fn the_hosts_root_is_not_reached_through_processes(tree: &Tree) {
    let secret = tree.path("outside");
    fs_err::write(&secret, "the host's").unwrap();
    let path = secret.display();
    fails(
        tree,
        &format!(
            "for p in 1 2 3 4 5 6 7 8 9 self; do for d in root cwd; do \
             cat /proc/$p/$d{path} && echo OUT; cat /proc/$p/$d/..{path} && echo OUT; done; done; \
             cat {path} && echo OUT; cat /..{path} && echo OUT; echo tried"
        ),
    );
}

fn no_descriptor_is_inherited(tree: &Tree) {
    // This process has plenty open, also without close-on-exec.
    let file = fs_err::File::open("/etc/passwd").unwrap();
    let leaked = rustix::io::fcntl_dupfd_cloexec(&file, 50).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    // The shell's own `echo *` opens the directory as the next free descriptor.
    let output = tree.output("cd /proc/self/fd && echo *");
    assert!(
        matches!(output.as_str(), "0 1 2\n" | "0 1 2 3\n"),
        "{output}"
    );
    drop(leaked);
    fails(
        tree,
        "for fd in 3 4 5 6 7 8 9 10 50; do ls -l /proc/$$/fd/$fd/.. 2>/dev/null && echo OUT; done; echo tried",
    );
}

fn nothing_can_be_mounted(tree: &Tree) {
    fails(
        tree,
        "mount -t proc proc /tmp && echo OUT; mount -t sysfs sysfs /tmp && echo OUT; \
         mount -t tmpfs tmpfs /tmp && echo OUT; mount --bind / /tmp && echo OUT; \
         mount -o remount,rw /sys && echo OUT; mount -o remount,rw /proc/sys && echo OUT; \
         mount -o remount,dev / && echo OUT; mount -t cgroup -o memory x /tmp && echo OUT; \
         mount -t cgroup2 x /tmp && echo OUT; mount -t debugfs x /tmp && echo OUT; \
         mount -t devtmpfs x /tmp && echo OUT; pivot_root / /tmp && echo OUT; echo tried",
    );
}

fn masks_stay(tree: &Tree) {
    fails(
        tree,
        "for m in $(cut -d' ' -f2 /proc/self/mounts); do umount -l $m 2>/dev/null && echo OUT $m; done; \
         test -s /proc/keys && echo OUT; test -s /proc/timer_list && echo OUT; ls /sys/firmware | grep . && echo OUT; \
         head -c 1 /proc/kcore 2>/dev/null | grep . && echo OUT; \
         mv /proc/keys /proc/x && echo OUT; rm /proc/timer_list && echo OUT; echo tried",
    );
}

fn disks_cannot_be_opened(tree: &Tree) {
    let root = rustix::fs::stat("/").unwrap().st_dev;
    let (major, minor) = (rustix::fs::major(root), rustix::fs::minor(root));
    let cache = tree.path("cache");
    fs_err::create_dir(&cache).unwrap();
    let mut command = shell(&format!(
        "for d in / /tmp /dev /dev/shm /cache /run/tmpfs /dev/mqueue; do \
         mknod $d/disk b {major} {minor} && {{ head -c 1 $d/disk > /dev/null && echo OUT $d; \
         dd if=/dev/zero of=$d/disk count=0 2>/dev/null && echo OUT write $d; }}; \
         mknod $d/mem c 1 1 && {{ head -c 1 $d/mem > /dev/null && echo OUT $d; }}; \
         mknod $d/kmsg c 1 11 && {{ echo x > $d/kmsg && echo OUT $d; }}; done 2>/dev/null; echo tried"
    ));
    command.mounts = vec![
        Mount {
            source: MountSource::Tree(Rootfs::Directory(cache)),
            target: "/cache".into(),
            readonly: false,
        },
        Mount {
            source: MountSource::Tmpfs { size_bytes: None },
            target: "/run/tmpfs".into(),
            readonly: false,
        },
    ];
    fails_as(tree, &command);
    if !may(Privilege::Devices) {
        return;
    }
    // Nor those that an image or an earlier step brought.
    let disk = tree.lower().join("tmp/brought");
    let device = rustix::fs::makedev(major, minor);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &disk,
        rustix::fs::FileType::BlockDevice,
        mode,
        device,
    )
    .unwrap();
    fails(tree, "head -c 1 /tmp/brought && echo OUT; echo tried");
}

fn processes_outside_are_out_of_reach(tree: &Tree) {
    let mut victim = std::process::Command::new("sleep")
        .arg("777")
        .spawn()
        .unwrap();
    let pid = victim.id();
    fails(
        tree,
        &format!(
            "kill -9 {pid} 2>/dev/null && echo OUT; ls /proc/{pid} 2>/dev/null && echo OUT; kill -9 -1; echo tried"
        ),
    );
    assert!(
        victim.try_wait().unwrap().is_none(),
        "the host's process lives"
    );
    if tree.compile(
        "attach",
        "#include <sys/ptrace.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <sys/uio.h>\n\
         int main(int c, char **v) { int p = atoi(v[1]); char b[8]; struct iovec i = {b, 8};\
         if (ptrace(PTRACE_ATTACH, p, 0, 0) == 0) puts(\"OUT\"); \
         if (ptrace(PTRACE_SEIZE, p, 0, 0) == 0) puts(\"OUT\"); \
         if (process_vm_readv(p, &i, 1, &i, 1, 0) >= 0) puts(\"OUT\"); puts(\"tried\"); }",
    ) {
        fails_as(tree, &Command::new(["/attach".to_owned(), pid.to_string()]));
        if tree.is_native() {
            // In a runtime process 1 is the command itself.
            fails_as(tree, &Command::new(["/attach", "1"]));
        }
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
}

fn init_is_out_of_reach(tree: &Tree) {
    if !tree.is_native() {
        // There process 1 is the command itself.
        return;
    }
    fails(
        tree,
        "cat /proc/1/environ 2>/dev/null | grep -q . && echo OUT; for f in /proc/1/fd/*; do readlink $f && echo OUT; head -c 0 $f 2>/dev/null && echo OUT; done; \
         ls /proc/1/root/ > /dev/null 2>&1 && echo OUT; ls /proc/1/cwd/ > /dev/null 2>&1 && echo OUT; \
         cat /proc/1/maps > /dev/null 2>&1 && echo OUT; head -c 1 /proc/1/mem > /dev/null 2>&1 && echo OUT; \
         kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.1; echo tried",
    );
}

fn abstract_sockets_are_out_of_reach(tree: &Tree) {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("obuild-escape-{}-{}", std::process::id(), tree.backend());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    if tree.compile(
        "dial",
        "#include <sys/socket.h>\n#include <sys/un.h>\n#include <stdio.h>\n#include <string.h>\n#include <stddef.h>\n\
         int main(int c, char **v) { struct sockaddr_un a = {AF_UNIX}; strcpy(a.sun_path + 1, v[1]); \
         int s = socket(AF_UNIX, SOCK_STREAM, 0); \
         if (connect(s, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(v[1])) == 0) puts(\"OUT\"); \
         puts(\"tried\"); }",
    ) {
        fails_as(tree, &Command::new(["/dial".to_owned(), name]));
    }
    assert!(listener.accept().is_err());
}

fn virtual_machine_sockets_are_refused(tree: &Tree) {
    // AF_VSOCK, also with bits set above those that the kernel looks at.
    if tree.compile(
        "vsock",
        "#include <stdio.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n#include <errno.h>\n\
         int main() { if (syscall(SYS_socket, 40L, 1L, 0L) >= 0 || errno != EPERM) puts(\"OUT\"); \
         if (syscall(SYS_socket, 40L | (1L << 32), 1L, 0L) >= 0 || errno != EPERM) puts(\"OUT\"); puts(\"tried\"); }",
    ) {
        for network in [Network::None, Network::Host] {
            let mut command = Command::new(["/vsock"]);
            command.network = network;
            fails_as(tree, &command);
        }
    }
}

fn nobody_stays_alive(tree: &Tree) {
    let marker = format!("76{}{}", std::process::id(), tree.number());
    let line = format!(
        "trap '' TERM HUP INT QUIT; (setsid sh -c \"trap '' TERM HUP; (sleep {marker} &) ; (sleep {marker} &)\" &); \
         nohup sleep {marker} > /dev/null 2>&1 & sleep 0.2; echo tried; exit 0"
    );
    fails(tree, &line);
    assert_eq!(processes(&format!("sleep\0{marker}")), Vec::<u32>::new());
    // A fork bomb ends with its step, too.
    let mut command = shell(&format!(
        "i=0; while test $i -lt 200; do (trap '' TERM; sleep {marker} &) ; i=$((i+1)); done; echo tried; sleep {marker}"
    ));
    command.limits.timeout = Some(std::time::Duration::from_secs(2));
    assert_eq!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::TimedOut
    );
    assert_eq!(processes(&format!("sleep\0{marker}")), Vec::<u32>::new());
}

fn chroot_does_not_get_out(tree: &Tree) {
    if tree.compile(
        "dotdot",
        "#include <fcntl.h>\n#include <stdio.h>\n#include <sys/stat.h>\n#include <unistd.h>\n\
         int main(int c, char **v) { struct stat top, now; stat(\"/\", &top); mkdir(\"/jail\", 0755); \
         int fd = open(\"/\", O_RDONLY); if (chroot(\"/jail\") != 0) puts(\"no chroot\"); fchdir(fd); \
         for (int i = 0; i < 99; i++) chdir(\"..\"); chroot(\".\"); \
         stat(\"/\", &now); if (now.st_ino != top.st_ino || now.st_dev != top.st_dev) puts(\"OUT\"); \
         if (access(v[1], F_OK) == 0) puts(\"OUT\"); puts(\"tried\"); }",
    ) {
        let outside = tree.scratch.path().display().to_string();
        fails_as(tree, &Command::new(["/dotdot".to_owned(), outside]));
    }
}

fn namespaces_cannot_be_made(tree: &Tree) {
    for flag in ["m", "u", "i", "n", "p", "U", "C"] {
        fails(
            tree,
            &format!("unshare -{flag} true 2>/dev/null && echo OUT; echo tried"),
        );
    }
    fails(
        tree,
        "nsenter -t 1 -m true 2>/dev/null && echo OUT; nsenter -t 1 -n true 2>/dev/null && echo OUT; echo tried",
    );
    if tree.compile(
        "cloned",
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <stdio.h>\n#include <unistd.h>\n#include <signal.h>\n\
         #include <errno.h>\n#include <sys/syscall.h>\n#include <stdlib.h>\n\
         int main() { long flags[] = {0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000}; \
         for (int i = 0; i < 7; i++) { long p = syscall(SYS_clone, flags[i] | SIGCHLD, 0, 0, 0, 0); \
         if (p == 0) _exit(0); if (p > 0) puts(\"OUT\"); } \
         unsigned long long args[11] = {0x10000000, 0, 0, 0, SIGCHLD}; \
         long p = syscall(SYS_clone3, args, 64); if (p == 0) _exit(0); \
         if (p > 0 || errno != ENOSYS) puts(\"OUT\"); puts(\"tried\"); }",
    ) {
        fails_as(tree, &Command::new(["/cloned"]));
        let mut command = Command::new(["/cloned"]);
        command.user = obuild_sandboxes::User::Ids { uid: 1000, gid: 1000 };
        fails_as(tree, &command);
    }
}

fn cgroups_cannot_be_written(tree: &Tree) {
    fails(
        tree,
        "find /sys/fs/cgroup -name cgroup.procs | while read f; do echo $$ > $f && echo OUT $f; done 2>/dev/null; \
         find /sys/fs/cgroup -name 'memory.limit_in_bytes' -o -name release_agent -o -name pids.max | \
         while read f; do echo 1 > $f && echo OUT $f; done 2>/dev/null; \
         for d in /sys/fs/cgroup/*; do mkdir $d/own 2>/dev/null && test -e $d/own/cgroup.procs && echo OUT $d; done; echo tried",
    );
}

/// Calls, with arguments that would do harm or at least succeed where they are allowed.
const CALLS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static void refused(const char *name, long result) {
    if (result >= 0 || (errno != EPERM && errno != ENOSYS)) printf("OUT %s %ld %s\n", name, result, strerror(errno));
}
#define TRY(name, ...) refused(#name, syscall(SYS_##name, __VA_ARGS__))
int main() {
    char page[4096] = {0};
    TRY(kexec_load, 0L, 0L, 0L, 0L);
    TRY(init_module, page, 16L, "");
    TRY(finit_module, 0L, "", 0L);
    TRY(delete_module, "none", 0L);
    TRY(bpf, 0L, page, 64L);
    TRY(perf_event_open, page, 0L, -1L, -1L, 0L);
    TRY(keyctl, 0L, -3L, 0L);
    TRY(add_key, "user", "x", "y", 1L, -3L);
    TRY(request_key, "user", "x", 0L, -3L);
    TRY(userfaultfd, 0L);
    TRY(open_by_handle_at, -100L, page, 0L);
    TRY(setns, 0L, 0L);
    TRY(unshare, 0x10000000L);
    TRY(pivot_root, "/", "/");
    TRY(mount, "none", "/tmp", "tmpfs", 0L, 0L);
    TRY(umount2, "/proc", 2L);
    TRY(fsopen, "tmpfs", 0L);
    TRY(open_tree, -100L, "/", 1L);
    TRY(move_mount, -100L, "/tmp", -100L, "/root", 0L);
    TRY(mount_setattr, -100L, "/", 0L, page, 32L);
    TRY(swapon, "/tmp/none", 0L);
    TRY(swapoff, "/tmp/none");
    TRY(reboot, 0xfee1deadL, 672274793L, 0L, 0L);
    TRY(settimeofday, page, 0L);
    TRY(clock_settime, 0L, page);
    TRY(sethostname, "x", 1L);
    TRY(setdomainname, "x", 1L);
    TRY(quotactl, 0L, "/", 0L, 0L);
    TRY(acct, 0L);
    TRY(fanotify_init, 0L, 0L);
    TRY(syslog, 3L, page, 16L);
    TRY(io_uring_setup, 4L, page);
    TRY(vhangup, 0L);
    TRY(personality, 0x0040000L);
    TRY(personality, 0x0400000L);
    TRY(pidfd_getfd, 0L, 0L, 0L);
#ifdef SYS_iopl
    TRY(iopl, 3L);
    TRY(ioperm, 0L, 1L, 1L);
#endif
    puts("tried");
}
"#;

fn dangerous_calls_are_refused(tree: &Tree) {
    if tree.compile("calls", CALLS) {
        let time = std::time::SystemTime::now();
        fails_as(tree, &Command::new(["/calls"]));
        assert!(time.elapsed().is_ok(), "the clock was set back");
    }
}

fn foreign_conventions_are_no_way_round(tree: &Tree) {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    // i386's mount(2) by int 0x80 with low addresses, and x32's by bit 30.
    if tree.compile(
        "foreign",
        "#define _GNU_SOURCE\n#include <stdio.h>\n#include <string.h>\n#include <sys/mman.h>\n#include <sys/syscall.h>\n\
         #include <unistd.h>\n\
         int main() { char *low = mmap((void *)0x10000, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); \
         strcpy(low, \"tmpfs\"); strcpy(low + 16, \"/tmp\"); long result; setvbuf(stdout, 0, _IONBF, 0); \
         if (syscall(SYS_mount + 0x40000000L, low, low + 16, low, 0, 0) == 0) puts(\"OUT\"); puts(\"tried\"); \
         __asm__ volatile(\"int $0x80\" : \"=a\"(result) : \"a\"(21), \"b\"(low), \"c\"(low + 16), \"d\"(low), \"S\"(0), \"D\"(0) : \"memory\"); \
         if (result == 0) puts(\"OUT\"); }",
    ) {
        for rootfs in [tree.directory(), tree.overlay()] {
            let (exit, output) = tree.run(&Command::new(["/foreign"]), &rootfs).unwrap();
            // A filter of libseccomp's kills.
            assert!(exit == Exit::Status(0) || exit == Exit::Signal(31), "{exit:?}");
            assert!(!output.contains("OUT"), "{output}");
        }
    }
}

fn terminals_cannot_be_typed_into(tree: &Tree) {
    // With the real TIOCSTI, and with bits above those that the kernel looks at.
    if tree.compile(
        "typist",
        "#include <errno.h>\n#include <stdio.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
         int main() { for (int fd = 0; fd < 3; fd++) { \
         if (syscall(SYS_ioctl, (long)fd, 0x5412L, \"x\") == 0 || errno != EPERM) puts(\"OUT\"); \
         if (syscall(SYS_ioctl, (long)fd, 0x5412L | (1L << 32), \"x\") == 0 || errno != EPERM) puts(\"OUT\"); \
         if (syscall(SYS_ioctl, (long)fd, 0x541cL, \"\\2\") == 0 || errno != EPERM) puts(\"OUT\"); } puts(\"tried\"); }",
    ) {
        fails_as(tree, &Command::new(["/typist"]));
    }
}

fn files_of_the_host_cannot_be_opened_by_handle(tree: &Tree) {
    // Root of a container with CAP_DAC_READ_SEARCH could walk the disk by inode number.
    if tree.compile(
        "handle",
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <stdio.h>\n#include <stdlib.h>\n\
         int main() { struct file_handle *h = calloc(1, 64); h->handle_bytes = 8; h->handle_type = 1; \
         ((unsigned *)h->f_handle)[0] = 2; int fd = open(\"/\", O_RDONLY); \
         if (open_by_handle_at(fd, h, O_RDONLY) >= 0) puts(\"OUT\"); puts(\"tried\"); }",
    ) {
        fails_as(tree, &Command::new(["/handle"]));
    }
}

fn links_in_the_tree_do_not_lead_out(tree: &Tree) {
    let outside = tree.path("outside");
    fs_err::create_dir(&outside).unwrap();
    fs_err::write(outside.join("hosts"), "the host's").unwrap();
    fs_err::write(outside.join("passwd"), "user:x:0:0::/:/bin/sh\n").unwrap();
    fs_err::remove_dir_all(tree.lower().join("etc")).unwrap();
    symlink(&outside, tree.lower().join("etc")).unwrap();
    symlink(&outside, tree.lower().join("run")).unwrap();
    symlink("../../../../../../../../../..", tree.lower().join("up")).unwrap();
    let before = listing(&outside);
    let mut command = shell(
        "cat /etc/hosts; cat /run/secret; cat /up/secret; echo tried; ls /etc/passwd && echo OUT",
    );
    command.workdir = "/etc/work".into();
    command.network = Network::Host;
    command.secrets = ["/run/secret", "/up/secret"]
        .map(|target| Secret {
            target: target.into(),
            value: b"a secret\n".to_vec(),
        })
        .into();
    command.mounts = vec![Mount {
        source: MountSource::Tmpfs { size_bytes: None },
        target: "/run/mounted".into(),
        readonly: false,
    }];
    let (exit, output) = tree.run(&command, &tree.directory()).unwrap();
    assert!(
        output.contains("localhost builder") && output.matches("a secret").count() == 2,
        "{exit:?} {output}"
    );
    assert!(!output.contains("OUT"), "{output}");
    unchanged(&outside, &before);
    // A user of the host's file is none of the tree's.
    command.user = obuild_sandboxes::User::Name("user".into());
    assert!(tree.run(&command, &tree.directory()).is_err());
    unchanged(&outside, &before);
    assert!(!std::path::Path::new("/secret").exists());
}

fn links_at_the_kernels_places(tree: &Tree) {
    let outside = tree.path("outside");
    for name in ["proc", "dev", "sys"] {
        fs_err::create_dir_all(outside.join(name)).unwrap();
        fs_err::remove_dir(tree.lower().join(name)).unwrap();
        symlink(outside.join(name), tree.lower().join(name)).unwrap();
    }
    let (outside_before, before) = (listing(&outside), listing(&tree.lower()));
    match tree.run(
        &shell("cat /proc/self/status > /dev/null && echo tried"),
        &tree.directory(),
    ) {
        Ok((exit, output)) => assert_eq!((exit, output.as_str()), (Exit::Status(0), "tried\n")),
        Err(error) => assert!(!tree.is_native(), "{error}"),
    }
    unchanged(&outside, &outside_before);
    unchanged(&tree.lower(), &before);
}

fn a_missing_place_behind_a_link(tree: &Tree) {
    // The link's target does not exist, neither here nor there; loops and links through files are errors.
    symlink("/var/tmp/obuild-never-made/deep", tree.lower().join("run")).unwrap();
    symlink("loop", tree.lower().join("loop")).unwrap();
    symlink("/bin/busybox", tree.lower().join("file")).unwrap();
    let before = listing(&tree.lower());
    let with = |target: &str| {
        let mut command = shell("cat $(echo /run/s*) && echo tried");
        command.secrets = vec![Secret {
            target: target.into(),
            value: b"x".to_vec(),
        }];
        tree.run(&command, &tree.directory())
    };
    assert_eq!(with("/run/secret").unwrap().1, "xtried\n");
    unchanged(&tree.lower(), &before);
    assert!(!std::path::Path::new("/var/tmp/obuild-never-made").exists());
    for target in [
        "/loop/secret",
        "/file/secret",
        "/proc/self/root/secret",
        "/proc/secret",
    ] {
        assert!(with(target).is_err(), "{target}");
        unchanged(&tree.lower(), &before);
    }
}

fn shared_inodes_keep_their_modes(tree: &Tree) {
    // What the step gets of the host's inodes (its output pipe, nothing else) may be changed, the host's files may not.
    let before = listing(std::path::Path::new("/etc/resolv.conf"));
    let mut command = shell(
        "chmod 777 /etc/hosts /etc/resolv.conf && echo OUT; chown 5 /etc/resolv.conf && echo OUT; \
         chmod 600 /proc/self/fd/0 /proc/self/fd/1; echo x >> /etc/resolv.conf && echo OUT; \
         rm /etc/resolv.conf && echo OUT; mv /etc/hosts /tmp && echo OUT; echo tried",
    );
    command.network = Network::Host;
    fails_as(tree, &command);
    assert_eq!(listing(std::path::Path::new("/etc/resolv.conf")), before);
}

fn the_hosts_memory_objects_are_not_shared(tree: &Tree) {
    let name = format!(
        "/dev/shm/obuild-escape-{}-{}",
        std::process::id(),
        tree.backend()
    );
    fs_err::write(&name, "x").unwrap();
    fails(
        tree,
        &format!("cat {name} && echo OUT; echo x > /dev/shm/mine; ls /dev/shm; echo tried"),
    );
    fails(tree, "test -e /dev/shm/mine && echo OUT; echo tried");
    fs_err::remove_file(&name).unwrap();
    wait_for("nothing of the step's is left", || {
        !std::path::Path::new("/dev/shm/mine").exists()
    });
}
