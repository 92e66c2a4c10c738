/* Counts the changes that a process makes to files of one folder, and lets one of them fail or be the process's last.
   It can also set the clock back at one of them.

   A shared library for LD_PRELOAD. It stands between the program and the C library, so that it also sees what SQLite,
   safetensors and torch write. The functions `faults_arm` and `faults_count` are called through ctypes.

   The system's own clock stays. The process sees one that is fast by so many seconds, and files have times to match:
   those of the folder are moved into the future when the clock is set back to the system's. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What happens at the change `at`: nothing, SIGKILL, an error, from then on a full disk or no change at all, a clock
   that is set back, such a clock before SIGKILL, and from then on folders that lie on disks of their own. `with` is the
   error, or the seconds of the clock. */
enum { COUNT, KILL, FAIL, FULL, DENIED, BACK, BACK_KILL, APART };

static char folder[PATH_MAX];
static atomic_long count, at, fast;
static int action, error;

void faults_arm(const char *path, long number, int what, int with) {
    strncpy(folder, path, sizeof folder - 1);
    atomic_store(&count, 0);
    atomic_store(&at, number);
    action = what;
    error = with;
    atomic_store(&fast, what == BACK || what == BACK_KILL ? with : 0);
}

long faults_count(void) { return atomic_load(&count); }

static int inside(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int fd_inside(int fd) {
    char link[64], path[PATH_MAX];
    struct stat found;
    if (!folder[0] || fstat(fd, &found) || !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return inside(path);
}

static int path_inside(int directory, const char *path) {
    char here[PATH_MAX];
    if (!folder[0]) return 0;
    if (path[0] == '/') return inside(path);
    if (directory != AT_FDCWD) return fd_inside(directory);
    return getcwd(here, sizeof here) && inside(here);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = REAL(clock_gettime)(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += atomic_load(&fast);
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = REAL(gettimeofday)(now, zone);
    if (!failed) now->tv_sec += atomic_load(&fast);
    return failed;
}
time_t time(time_t *now) {
    time_t seconds = REAL(time)(NULL) + atomic_load(&fast);
    if (now) *now = seconds;
    return seconds;
}

static int move_time(const char *path, const struct stat *found, int kind, struct FTW *place) {
    (void)kind, (void)place;
    struct timespec times[2] = {found->st_atim, found->st_mtim};
    for (int i = 0; i < 2; i++) times[i].tv_sec += error;
    utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
    return 0;
}

static void set_back(void) {
    nftw(folder, move_time, 16, FTW_PHYS | FTW_DEPTH);
    atomic_store(&fast, 0);
}

/* True if two paths are not in the same folder. */
static int apart(const char *from, const char *to) {
    const char *end = strrchr(from, '/'), *other = strrchr(to, '/');
    size_t length = end ? end - from : 0;
    return length != (size_t)(other ? other - to : 0) || strncmp(from, to, length);
}

/* Count a change that is about to happen; true if it is to fail, with errno set. `frees` is true for changes that
   need no space, which a full disk allows, and `moves` for those from one folder to another. */
static int refused_move(int frees, int moves) {
    long number = atomic_fetch_add(&count, 1) + 1, limit = atomic_load(&at);
    if (action == COUNT || number < limit) return 0;
    if ((action == BACK || action == BACK_KILL) && number == limit) set_back();
    if ((action == KILL || action == BACK_KILL) && number == limit) kill(getpid(), SIGKILL);
    if ((action == FAIL && number == limit) || (action == FULL && !frees) || action == DENIED ||
        (action == APART && moves)) {
        errno = error;
        return 1;
    }
    return 0;
}

static int refused(int frees) { return refused_move(frees, 0); }

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                                  \
        if ((flags & (O_CREAT | O_TRUNC)) && path_inside(AT_FDCWD, path) && refused(0)) return -1; \
        return REAL(name)(path, flags, mode);                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                   \
    int name(int directory, const char *path, int flags, ...) {                        \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                                  \
        if ((flags & (O_CREAT | O_TRUNC)) && path_inside(directory, path) && refused(0)) return -1; \
        return REAL(name)(directory, path, flags, mode);                               \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    return fd_inside(fd) && refused(0) ? -1 : REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    return fd_inside(fd) && refused(0) ? -1 : REAL(pwrite)(fd, data, size, place);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    return fd_inside(fd) && refused(0) ? -1 : REAL(pwrite64)(fd, data, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    return fd_inside(fd) && refused(0) ? -1 : REAL(writev)(fd, parts, number);
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
    return fd_inside(to) && refused(0) ? -1 : REAL(sendfile64)(to, from, place, size);
}
ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    return fd_inside(to) && refused(0) ? -1 : REAL(sendfile)(to, from, place, size);
}
ssize_t copy_file_range(int from, off64_t *begin, int to, off64_t *place, size_t size, unsigned flags) {
    return fd_inside(to) && refused(0) ? -1 : REAL(copy_file_range)(from, begin, to, place, size, flags);
}
int ftruncate(int fd, off_t size) { return fd_inside(fd) && refused(1) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fd_inside(fd) && refused(1) ? -1 : REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) {
    return path_inside(AT_FDCWD, to) && refused_move(1, apart(from, to)) ? -1 : REAL(rename)(from, to);
}
int renameat(int before, const char *from, int after, const char *to) {
    int moves = before != after || apart(from, to);
    return path_inside(after, to) && refused_move(1, moves) ? -1 : REAL(renameat)(before, from, after, to);
}
int renameat2(int before, const char *from, int after, const char *to, unsigned flags) {
    int moves = before != after || apart(from, to);
    return path_inside(after, to) && refused_move(1, moves) ? -1 : REAL(renameat2)(before, from, after, to, flags);
}
int unlink(const char *path) { return path_inside(AT_FDCWD, path) && refused(1) ? -1 : REAL(unlink)(path); }
int unlinkat(int directory, const char *path, int flags) {
    return path_inside(directory, path) && refused(1) ? -1 : REAL(unlinkat)(directory, path, flags);
}
int rmdir(const char *path) { return path_inside(AT_FDCWD, path) && refused(1) ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) {
    return path_inside(AT_FDCWD, path) && refused(0) ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    return path_inside(directory, path) && refused(0) ? -1 : REAL(mkdirat)(directory, path, mode);
}
