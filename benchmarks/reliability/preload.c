/* Counts what a process does to the files below one folder: creating, writing, flushing, renaming and deleting them.
   At a chosen event the process is killed or signalled, or from there on the disk is full. Loaded with LD_PRELOAD, so
   that it also sees the writes of C++ (torch) and Rust (safetensors, tokenizers). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL, KILL_HALFWAY, FULL, SIGNAL, BROKEN };
enum kind { CHANGE, CREATION, WRITING };  /* a full disk refuses CREATION and WRITING */
enum verdict { GO_ON, FAIL, HALF };

static char below[4096];
static long target, events;
static int mode = OFF, log_file = -1, number_of_signal;
static pid_t owner;  /* children of the process, which inherit this, count nothing */

void watch_files(const char *folder, int new_mode, long new_target, int new_log, int signal_number) {
  snprintf(below, sizeof below, "%s/", folder);
  target = new_target; events = 0; log_file = new_log; number_of_signal = signal_number; owner = getpid(); mode = new_mode;
}
long watched_events(void) { return events; }

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }

static enum verdict event(const char *name, const char *path, enum kind kind) {
  if (getpid() != owner || strncmp(path, below, strlen(below)) != 0) return GO_ON;
  events++;
  if (mode == COUNT) {
    char line[4300];
    int length = snprintf(line, sizeof line, "%d %s %s\n", kind, name, path);
    if (log_file >= 0) syscall(SYS_write, log_file, line, length);
    return GO_ON;
  }
  if (mode == FULL && events >= target && kind != CHANGE) { errno = ENOSPC; return FAIL; }
  if (mode == FULL || events != target) return GO_ON;
  if (mode == BROKEN) { errno = EIO; return FAIL; }
  if (mode == SIGNAL) { kill(getpid(), number_of_signal); return GO_ON; }
  if (mode == KILL_HALFWAY && kind == WRITING) return HALF;
  die();
  return FAIL;
}

static int path_at(int folder, const char *path, char *out) {
  char base[4000] = "", link[64];
  ssize_t length = 0;
  if (path[0] == '/') { snprintf(out, 4096, "%s", path); return 1; }
  if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
  else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  if ((length = readlink(link, base, sizeof base - 1)) < 0) return 0;
  base[length] = 0;
  snprintf(out, 4096, "%s/%s", base, path);
  return 1;
}
static int path_of(int file, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, out, 4095);
  if (length < 0) return 0;
  out[length] = 0;
  return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define AT(folder, path, name, kind) char full[4096]; if (mode && path_at(folder, path, full) && event(name, full, kind) == FAIL) return -1
#define MODE_ARGUMENT mode_t bits = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); }
#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define KIND(flags) ((flags) & O_CREAT ? CREATION : CHANGE)

#define OPEN(NAME) int NAME(const char *path, int flags, ...) { REAL(NAME); MODE_ARGUMENT \
  if (CHANGES(flags)) { AT(AT_FDCWD, path, "open", KIND(flags)); } return real(path, flags, bits); }
OPEN(open) OPEN(open64)
#define OPENAT(NAME) int NAME(int folder, const char *path, int flags, ...) { REAL(NAME); MODE_ARGUMENT \
  if (CHANGES(flags)) { AT(folder, path, "open", KIND(flags)); } return real(folder, path, flags, bits); }
OPENAT(openat) OPENAT(openat64)
#define FOPEN(NAME) FILE *NAME(const char *path, const char *how) { REAL(NAME); char full[4096]; \
  if (mode && how[0] != 'r' && path_at(AT_FDCWD, path, full) && event("fopen", full, CREATION) == FAIL) return NULL; return real(path, how); }
FOPEN(fopen) FOPEN(fopen64)

#define WRITES(file, name, half) char full[4096]; if (mode && file > 2 && file != log_file && path_of(file, full)) { \
  enum verdict verdict = event(name, full, WRITING); if (verdict == FAIL) return -1; if (verdict == HALF) { half; die(); } }
ssize_t write(int file, const void *bytes, size_t count) { REAL(write); WRITES(file, "write", real(file, bytes, count / 2)) return real(file, bytes, count); }
ssize_t writev(int file, const struct iovec *parts, int count) { REAL(writev); WRITES(file, "write", real(file, parts, 1)) return real(file, parts, count); }
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) { REAL(pwrite64); WRITES(file, "write", real(file, bytes, count / 2, at)) return real(file, bytes, count, at); }

#define ON_FILE(NAME) char full[4096]; if (mode && path_of(file, full) && event(NAME, full, CHANGE) == FAIL) return -1
int fsync(int file) { REAL(fsync); ON_FILE("fsync"); return real(file); }
int ftruncate(int file, off_t size) { REAL(ftruncate); ON_FILE("truncate"); return real(file, size); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); ON_FILE("truncate"); return real(file, size); }
int rename(const char *from, const char *to) { REAL(rename); AT(AT_FDCWD, from, "rename", CHANGE); return real(from, to); }
int renameat(int here, const char *from, int there, const char *to) { REAL(renameat); AT(here, from, "rename", CHANGE); return real(here, from, there, to); }
int unlink(const char *path) { REAL(unlink); AT(AT_FDCWD, path, "unlink", CHANGE); return real(path); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); AT(folder, path, "unlink", CHANGE); return real(folder, path, flags); }
int rmdir(const char *path) { REAL(rmdir); AT(AT_FDCWD, path, "rmdir", CHANGE); return real(path); }
int mkdir(const char *path, mode_t bits) { REAL(mkdir); AT(AT_FDCWD, path, "mkdir", CREATION); return real(path, bits); }
int mkdirat(int folder, const char *path, mode_t bits) { REAL(mkdirat); AT(folder, path, "mkdir", CREATION); return real(folder, path, bits); }
