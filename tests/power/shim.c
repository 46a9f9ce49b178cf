/* Logs every change that a process makes below one directory, for replaying with some of it lost.
 *
 * LD_PRELOAD; POWER_ROOT is the directory, POWER_LOG the log. One record an operation, written after it succeeded and
 * with one writev to an O_APPEND file, so that the records of a process and its children are in one order.
 * Record: u8 kind, u32 length of path, u64 offset, u32 length of data, then path and data. Little-endian only.
 * Kinds: 1 create, 2 write, 3 truncate (offset: new size), 4 fsync of a file, 5 fsync of the directory,
 * 6 rename (data: new path), 7 unlink.
 * POWER_FAIL names a file: while it exists, writes and fsyncs fail with the error number that it holds; with an "s"
 * behind the number only fsyncs do: what was written is there, and is said not to be.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_length;

__attribute__((constructor)) static void begin(void)
{
	const char *where = getenv("POWER_ROOT"), *log = getenv("POWER_LOG");
	if (where == NULL)
		return;
	snprintf(root, sizeof root, "%s/", where);
	root_length = strlen(root);
	if (log != NULL)
		/* A number that no program closes by accident. */
		log_fd = fcntl((int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600),
			       F_DUPFD_CLOEXEC, 900);
}

static int is_ours(const char *path)
{
	return root_length && (strncmp(path, root, root_length) == 0 ||
			       (strlen(path) + 1 == root_length && strncmp(path, root, root_length - 1) == 0));
}

static const char *path_of(int fd, char *path)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, PATH_MAX - 1);
	if (length < 0)
		return NULL;
	path[length] = 0;
	char *deleted = strstr(path, " (deleted)");
	if (deleted != NULL)
		return NULL;
	return is_ours(path) ? path : NULL;
}

static void note(uint8_t kind, const char *path, uint64_t offset, const void *data, uint32_t size)
{
	if (log_fd < 0)
		return;
	struct __attribute__((packed)) { uint8_t kind; uint32_t path; uint64_t offset; uint32_t size; } head = {
		kind, (uint32_t)strlen(path), offset, size };
	struct iovec parts[3] = { { &head, sizeof head }, { (void *)path, head.path }, { (void *)data, size } };
	int before = errno;
	if (syscall(SYS_writev, log_fd, parts, 3) < 0)
		abort();
	errno = before;
}

static int fails_at(int is_sync)
{
	const char *name = getenv("POWER_FAIL");
	if (name == NULL)
		return 0;
	int fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return 0;
	char text[16] = "";
	ssize_t length = syscall(SYS_read, fd, text, sizeof text - 1);
	syscall(SYS_close, fd);
	errno = length > 0 ? atoi(text) : EIO;
	return is_sync || strchr(text, 's') == NULL;
}

static int fails(void)
{
	return fails_at(0);
}

#define REAL(name) \
	static __typeof__(&name) real; \
	if (real == NULL) \
		real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int opened(int fd, const char *path, int flags, int existed)
{
	if (fd >= 0 && (flags & O_CREAT) && !existed)
		note(1, path, 0, NULL, 0);
	else if (fd >= 0 && (flags & O_TRUNC))
		note(3, path, 0, NULL, 0);
	return fd;
}

#define OPEN(name) \
	int name(const char *path, int flags, ...) \
	{ \
		REAL(name); \
		va_list arguments; \
		va_start(arguments, flags); \
		mode_t mode = (mode_t)va_arg(arguments, int); \
		va_end(arguments); \
		if (!is_ours(path)) \
			return real(path, flags, mode); \
		if ((flags & O_CREAT) && fails()) \
			return -1; \
		int existed = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0; \
		return opened(real(path, flags, mode), path, flags, existed); \
	}
OPEN(open)
OPEN(open64)

#define PWRITE(name, offset_type) \
	ssize_t name(int fd, const void *data, size_t size, offset_type offset) \
	{ \
		REAL(name); \
		char buffer[PATH_MAX]; \
		const char *path = root_length ? path_of(fd, buffer) : NULL; \
		if (path != NULL && fails()) \
			return -1; \
		ssize_t done = real(fd, data, size, offset); \
		if (path != NULL && done > 0) \
			note(2, path, (uint64_t)offset, data, (uint32_t)done); \
		return done; \
	}
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size)
{
	REAL(write);
	char buffer[PATH_MAX];
	const char *path = root_length ? path_of(fd, buffer) : NULL;
	if (path != NULL && fails())
		return -1;
	off_t at = path != NULL ? lseek(fd, 0, SEEK_CUR) : 0;
	ssize_t done = real(fd, data, size);
	if (path != NULL && done > 0)
		note(2, path, (uint64_t)at, data, (uint32_t)done);
	return done;
}

#define TRUNCATE(name, offset_type) \
	int name(int fd, offset_type size) \
	{ \
		REAL(name); \
		char buffer[PATH_MAX]; \
		const char *path = root_length ? path_of(fd, buffer) : NULL; \
		if (path != NULL && fails()) \
			return -1; \
		int done = real(fd, size); \
		if (path != NULL && done == 0) \
			note(3, path, (uint64_t)size, NULL, 0); \
		return done; \
	}
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name) \
	int name(int fd) \
	{ \
		REAL(name); \
		char buffer[PATH_MAX]; \
		const char *path = root_length ? path_of(fd, buffer) : NULL; \
		if (path != NULL && fails_at(1)) \
			return -1; \
		int done = real(fd); \
		if (path != NULL && done == 0) { \
			struct stat found; \
			fstat(fd, &found); \
			note(S_ISDIR(found.st_mode) ? 5 : 4, path, 0, NULL, 0); \
		} \
		return done; \
	}
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to)
{
	REAL(rename);
	if (is_ours(from) && fails())
		return -1;
	int done = real(from, to);
	if (done == 0 && is_ours(from))
		note(6, from, 0, to, (uint32_t)strlen(to));
	return done;
}

int unlink(const char *path)
{
	REAL(unlink);
	if (is_ours(path) && fails())
		return -1;
	int done = real(path);
	if (done == 0 && is_ours(path))
		note(7, path, 0, NULL, 0);
	return done;
}
